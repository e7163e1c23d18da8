"""The first screen of the comparison page: which file to take and how, its links, and a row of figures per file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from quantyard.formatting import numbers
from quantyard.hub.files import HubPlace, hub_model_url
from quantyard.metrics.choice import best_of_report, file_cost_sentence, less_memory_sentence, why_file_sentence
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.protocol.measurements import EvalReport
from quantyard.report_page.tables import PageFile
from quantyard.store.manifest import Manifest, QuantRecord

_SAFE_WORD: Final = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class PageAnswer:
    """The file to take, in sentences, its address beside the page, and the command that runs it."""

    number: int
    label: str
    cost: str
    why: tuple[str, ...]
    address: str
    command: str


@dataclass(frozen=True)
class PageFigures:
    """One file in a row: name, address, and (figure, what it is)."""

    number: int
    label: str
    address: str
    figures: tuple[tuple[str, str], ...]
    is_taken: bool = False
    name_note: str = ""  # what the file's name does not say


def page_answer(
    manifest: Manifest, report: EvalReport, files: Sequence[PageFile], place: HubPlace
) -> PageAnswer | None:
    """The file that `choose` would take of all; None if no quality was measured.

    Args:
        place: the Hub repo that the page lies in.
    """
    choice = best_of_report(report, manifest.quants)
    if choice is None:
        return None
    label, record = choice.best.label, manifest.quants[choice.best.label]
    why = (why_file_sentence(choice, report.baseline), less_memory_sentence(choice))
    return PageAnswer(
        next(file.number for file in files if file.label == label), label, file_cost_sentence(choice.best.found),
        tuple(sentence for sentence in why if sentence), page_address(record), _page_command(record, label, place),
    )  # fmt: skip


def page_address(record: QuantRecord | None) -> str:
    """The address of a file, or of its first part, beside the page."""
    return quote(record.files[0].path) if record else ""


def _page_command(record: QuantRecord, label: str, place: HubPlace) -> str:
    if place.repo_id and not place.branch and _SAFE_WORD.fullmatch(label):
        token = "HF_TOKEN=hf_xxx " if place.closed else ""
        return f"{token}llama-server -hf {shlex.quote(place.repo_id)}:{label}"
    return f"llama-server -m {shlex.quote(record.files[0].path)}"


def page_links(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """Name and address of what belongs to the page."""
    source = hub_model_url(manifest.source.repo_id, manifest.source.commit)
    found = [("Card", "README.md"), ("Manifest", "manifest.json")]
    return (*found, ("Source", source)) if source else tuple(found)


def page_figures(manifest: Manifest, files: Sequence[PageFile], taken: str) -> tuple[PageFigures, ...]:
    """A row for each file but the baseline."""
    return tuple(
        PageFigures(file.number, file.label, page_address(manifest.quants.get(file.label)),
                    tuple(_page_answer_figures(manifest, file)), is_taken=file.label == taken,
                    name_note=_page_name_note(manifest, file.label))
        for file in files if not file.is_baseline
    )  # fmt: skip


def _page_name_note(manifest: Manifest, label: str) -> str:
    record = manifest.quants.get(label)
    return record.narrow_rows.sentence if record and record.narrow_rows else ""


def _page_answer_figures(manifest: Manifest, file: PageFile) -> Iterator[tuple[str, str]]:
    yield numbers.format_file_size(file.size_bytes), "size"
    if file.divergence and file.divergence.top1_agreement:
        yield numbers.format_percent(file.divergence.top1_agreement.value), "same top token"
    if change := ppl_change_interval(file.divergence):
        yield numbers.format_change(change.value), "perplexity"
    yield from _page_answer_memory(manifest, file)
    if file.speed:
        yield numbers.format_tokens_per_s(file.speed.generated_tokens_per_s), "tokens/s"


def _page_answer_memory(manifest: Manifest, file: PageFile) -> Iterator[tuple[str, str]]:
    """At each context whose memory is known; else the measured peak."""
    record = manifest.quants.get(file.label)
    if file.speed is None:
        return
    peak, context = file.speed.peak_memory_bytes, record.context if record else None
    known = {
        tokens: memory for tokens in (context.served if context else ())
        if context and (memory := context.memory_bytes(peak, file.speed.n_ctx, tokens)) is not None
    }  # fmt: skip
    for tokens, memory in known.items():
        yield numbers.format_memory(memory), f"memory at {numbers.format_context(tokens)}"
    if not known:
        yield numbers.format_memory(peak), "memory, short context"
