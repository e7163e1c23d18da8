"""The stage `domains`: KL divergence of GGUFs from the baseline on each of several kinds of text.

All models read the same tokens side by side in one process, passage by passage, as in the stage `divergence`: the
baseline is decoded once however many files there are, and logits are compared in llama.cpp's own buffers. A finished
domain is kept, so that an interrupted run repeats only the domain that it was in.

A shard measures some of the domains; a run with the shards as inputs puts them together.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import llama_cpp
import numpy as np
from pydantic import JsonValue, ValidationError

from eval.analysis.domain_divergence import (
    LEAST_TOKENS,
    DomainTokens,
    domain_numbers,
    domain_parts,
    position_names,
)
from eval.analysis.domain_passages import Passage
from eval.analysis.domain_reading import domain_reading
from eval.analysis.domain_texts import LONG, DomainText
from eval.analysis.long_documents import read_domains_with_long_documents
from eval.analysis.passage_readers import PassageReaders
from eval.llama.cache_context import open_cache_context
from eval.llama.compared_models import compared_models, labelled_models, refuse_other_vocabulary
from eval.llama.context import PAD, ContextSettings
from eval.llama.model import GgufModel
from quantyard.hardware.machine import available_memory_bytes
from quantyard.metrics.domain_figures import worst_domain
from quantyard.protocol.base import Frozen
from quantyard.protocol.cache_types import DEFAULT_CACHE
from quantyard.protocol.divergence_results import DomainDivergence, DomainLeftOut, Domains
from quantyard.protocol.evaluation import DomainSettings, DomainsRequest
from quantyard.protocol.runner import Stage, StageOutcome, run_stage
from quantyard.protocol.shard import shard_folders, shard_members

_CACHE_SHARE: Final = 0.5  # of the free memory, for KV caches
_FINISHED: Final = "finished"  # folder of the domains that are measured


class DomainRecord(Frozen):
    """One measured domain: its numbers for each file, by label."""

    files: dict[str, DomainDivergence] = {}  # noqa: RUF012  (pydantic copies it)
    left_out: tuple[DomainLeftOut, ...] = ()


def domains(stage: Stage, request: DomainsRequest) -> StageOutcome:
    """Measure `/in/model/<model_file>` and the files beside it, against `/in/baseline/<baseline_file>` if there is one.

    Raises:
        StageFailure: 2 if a text is unusable, or if the baseline has another vocabulary; 2 or 3 if a file cannot be
            measured (see `GgufModel.load`).
    """
    started = time.monotonic()
    texts = read_domains_with_long_documents(stage.in_dir / "suite", request.settings)
    tools = {"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"}
    if folders := shard_folders(stage.in_dir):
        whole = domains_of_shards(folders, texts)
        (stage.files_dir / "domains.json").write_text(whole.model_dump_json(indent=2) + "\n")
        return StageOutcome(facts=domains_facts(whole), tools=tools)
    if request.shard:
        costs = [domain_cost(text.name, request.settings) for text in texts]
        texts = [texts[at] for at in shard_members(costs, request.shard)]
    with compared_models(stage, request) as models:
        for model in models[1:]:
            refuse_other_vocabulary(models[0], model)
        with PassageReaders(models, request.runtime.threads) as readers:
            records = _measured_domains(stage, request, readers, texts)
    shutil.rmtree(stage.files_dir / _FINISHED)
    labels = request.asked_labels
    took_s = (time.monotonic() - started) / len(labels)
    facts: dict[str, JsonValue] = {}
    for label in labels:
        found = _domains_of_file(label, records, took_s)
        folder = stage.files_dir / label if request.is_joined else stage.files_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "domains.json").write_text(found.model_dump_json(indent=2) + "\n")
        facts[label] = {} if request.shard else domains_facts(found)
    own = facts if request.is_joined else facts[request.label]
    assert isinstance(own, dict)
    return StageOutcome(facts=own, tools=tools)


def domains_facts(found: Domains) -> dict[str, JsonValue]:
    """The stage's facts about one file."""
    worst = worst_domain(found)
    return {
        "n_domains": len(found.domains), "worst": worst.domain if worst else None,
        "worst_kld": worst.mean_kld.value if worst else None,
    }


def _domains_of_file(label: str, records: Sequence[DomainRecord], took_s: float) -> Domains:
    measured = tuple(record.files[label] for record in records if label in record.files)
    left_out = tuple(one for record in records for one in record.left_out)
    return Domains(label=label, domains=measured, left_out=left_out, duration_s=took_s)


def domain_cost(name: str, settings: DomainSettings) -> float:
    """About how many tokens of a domain are read."""
    return settings.long_documents * settings.positions[-1] if name == LONG else settings.tokens


def domains_of_shards(folders: Sequence[Path], texts: Sequence[DomainText]) -> Domains:
    """The domains of one file that shards measured, in the order of the texts."""
    parts = [Domains.model_validate_json((folder / "domains.json").read_bytes()) for folder in folders]
    places = {text.name: at for at, text in enumerate(texts)}
    return Domains(
        label=parts[0].label, duration_s=sum(part.duration_s for part in parts),
        domains=tuple(sorted((one for part in parts for one in part.domains), key=lambda one: places[one.domain])),
        left_out=tuple(sorted((one for part in parts for one in part.left_out), key=lambda one: places[one.domain])),
    )


# ---- one domain after the other ----------------------------------------------------------------------


def _measured_domains(
    stage: Stage, request: DomainsRequest, readers: PassageReaders, texts: Sequence[DomainText]
) -> list[DomainRecord]:
    folder, records = stage.files_dir / _FINISHED, []
    folder.mkdir(parents=True, exist_ok=True)
    for at, text in enumerate(texts):
        stage.progress(at, len(texts), "texts", text.name, begins=True)
        path = folder / f"{at}.json"
        record = _finished_domain(path, text.name, request)
        if record is None:
            record = _measured_domain(request, readers, text)
            path.with_suffix(".part").write_text(record.model_dump_json())
            path.with_suffix(".part").rename(path)
        else:
            stage.log(f"{text.name} was measured before")
        records.append(record)
    stage.progress(len(texts), len(texts), "texts")
    return records


def _finished_domain(path: Path, name: str, request: DomainsRequest) -> DomainRecord | None:
    """What an earlier run measured of the same files; None if there is nothing."""
    try:
        record = DomainRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    same = {found.domain for found in record.files.values()} <= {name}
    return record if same and (not record.files or set(record.files) == set(request.asked_labels)) else None


def _measured_domain(request: DomainsRequest, readers: PassageReaders, text: DomainText) -> DomainRecord:
    models = readers.models
    fitting = fitting_positions(models, request.runtime.threads) if text.name == LONG else sys.maxsize
    reading = domain_reading(models[0], text, request.settings, fitting)
    passages = [passage for passage in reading.passages if len(passage.targets)]
    left_out = list(reading.left_out)
    n_tokens = sum(len(passage.targets) for passage in passages)
    if n_tokens < LEAST_TOKENS:
        left_out.append(f"not measured: {n_tokens} tokens could be scored, fewer than {LEAST_TOKENS}")
        return DomainRecord(left_out=tuple(DomainLeftOut(domain=text.name, reason=why) for why in left_out))
    rows = readers.read(passages)
    tokens, asked = _tokens_of(passages), labelled_models(request, models)
    values = dict(zip(map(id, models[1:]), rows.models(), strict=True))
    files = {}
    for label, model in asked:
        own = values.get(id(model))
        numbers = domain_numbers(own, own.nll if own else rows.baseline_nll(), tokens)
        names = position_names(tokens.position, request.settings.positions) if text.name == LONG else tokens.kind
        several = own is not None and len(set(names.tolist())) > 1
        files[label] = DomainDivergence(
            domain=text.name, form=reading.form, n_documents=len(passages),
            n_read=sum(passage.n_read for passage in passages), n_bytes=sum(passage.n_bytes for passage in passages),
            parts=domain_parts(own, tokens, names) if own and several else (), **numbers,
        )
    return DomainRecord(
        files=files, left_out=tuple(DomainLeftOut(domain=text.name, reason=why) for why in left_out)
    )


def _tokens_of(passages: Sequence[Passage]) -> DomainTokens:
    lengths = [len(passage.targets) for passage in passages]
    return DomainTokens(
        document=np.repeat(np.arange(len(passages), dtype=np.int32), lengths),
        position=np.concatenate([passage.targets for passage in passages]) - 1,
        kind=np.array([kind for passage in passages for kind in passage.kinds if kind]),
    )


def fitting_positions(models: Sequence[GgufModel], threads: int) -> int:
    """The positions for which the KV caches of all models fit in half of the memory that is free."""
    per_position = 0.0
    for model in models:
        context, allocated = open_cache_context(model, DEFAULT_CACHE, ContextSettings(PAD, threads=threads))
        context.close()
        per_position += allocated.k + allocated.v
    return int(available_memory_bytes() * _CACHE_SHARE / per_position) if per_position else sys.maxsize


def main() -> None:
    """Entry point of the stage."""
    run_stage(DomainsRequest, domains)


if __name__ == "__main__":
    main()
