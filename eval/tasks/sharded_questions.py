"""One shard of an evaluation: the answers to its units of questions, and putting the answers of all shards together.

All requests of all tasks are built before a unit is taken: lm-eval draws few-shot examples one question after the
other. Each shard then knows every unit and which are its own. The run that puts the shards together builds the same
requests, and lm-eval judges the answers of the shards as if this run had asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lm_eval.api.instance import Instance
from pydantic import ValidationError

from eval.llama.layout_noise import questions_to_repack, repacked_scores, repacked_unit_name
from eval.llama.question_units import UnitAnswers, question_units, unit_cost
from eval.tasks.drawn_questions import ask_drawn_questions
from quantyard.protocol.base import Frozen, JsonObject
from quantyard.protocol.evaluation import EvaluateRequest
from quantyard.protocol.predictions import FilePredictions
from quantyard.protocol.runner import Stage
from quantyard.protocol.shard import Shard, shard_members
from quantyard.protocol.task_results import SelfCheck

if TYPE_CHECKING:
    from eval.llama.lm import LlamaLM
    from eval.tasks.load import LeafTask

UNITS: Final = "units"  # folder of the answers, a file for each unit
SHARD: Final = "shard.json"


class ShardRecord(Frozen):
    """What a shard found besides its answers."""

    self_check: SelfCheck
    versions: dict[str, str]
    hardware: JsonObject
    predictions: FilePredictions | None
    duration_s: float


@dataclass(frozen=True)
class QuestionUnit:
    """A unit of questions, what it costs, and how it is answered."""

    name: str
    cost: float
    n_requests: int
    answer: Callable[[], list[Any]]


def evaluation_units(lm: LlamaLM, leaves: Sequence[LeafTask], request: EvaluateRequest) -> list[QuestionUnit]:
    """Every unit of the suite, in an order that all shards agree on; `lm.blocks` are set for all tasks."""
    lm.blocks = {leaf.name: ask_drawn_questions(leaf.task, leaf.entry.limit, request.seed) for leaf in leaves}
    for leaf in leaves:
        leaf.task.build_all_requests(**_lm_eval_options(lm, request))
    found = list[QuestionUnit]()
    for leaf in leaves:
        found += _asked_units(lm, leaf)
    for leaf in leaves:
        found += _repacked_units(lm, leaf)
    return found


def _lm_eval_options(lm: LlamaLM, request: EvaluateRequest) -> Mapping[str, Any]:
    """What lm_eval.evaluator.evaluate builds requests with, 0.4.13."""
    chat = request.apply_chat_template
    return {
        "limit": None, "rank": lm.rank, "world_size": lm.world_size, "system_instruction": None,
        "apply_chat_template": chat, "fewshot_as_multiturn": chat,
        "chat_template": lm.apply_chat_template if chat else None, "tokenizer_name": lm.tokenizer_name if chat else "",
    }


def _asked_units(lm: LlamaLM, leaf: LeafTask) -> Iterator[QuestionUnit]:
    by_kind: dict[str, list[Instance]] = {}
    for instance in leaf.task.instances:
        by_kind.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
    for kind, requests in by_kind.items():
        for name, numbers in question_units(kind, requests, lm.blocks):
            part = [requests[number] for number in numbers]
            ask = getattr(lm, kind)
            yield QuestionUnit(name, unit_cost([each.args for each in part]), len(part), _asked_later(ask, part))


def _repacked_units(lm: LlamaLM, leaf: LeafTask) -> Iterator[QuestionUnit]:
    """The questions that are scored again in another packing; see eval/llama/layout_noise.py."""
    if leaf.output_type not in ("multiple_choice", "loglikelihood"):
        return
    by_question: dict[int, list[Instance]] = {}
    for instance in leaf.task.instances:
        by_question.setdefault(instance.doc_id, []).append(instance)
    counted = [number for number, _ in leaf.task.doc_iterator(rank=0, limit=None, world_size=1)]
    questions = [sorted(by_question[number], key=lambda each: each.idx) for number in counted]
    asked = [instance.args for question in questions_to_repack(questions) for instance in question]
    if asked:
        yield QuestionUnit(
            repacked_unit_name(leaf.name), unit_cost(asked), len(asked),
            _asked_later(lambda pairs: repacked_scores(lm, pairs), asked),
        )


def _asked_later(ask: Callable[[Any], list[Any]], requests: Sequence[Any]) -> Callable[[], list[Any]]:
    return lambda: ask(requests)


def answer_shard(stage: Stage, lm: LlamaLM, units: Sequence[QuestionUnit], shard: Shard) -> None:
    """Answer this shard's units, each put in place with a rename: an interrupted run repeats only the one it was in."""
    members = shard_members([unit.cost for unit in units], shard)
    folder, total, done = stage.files_dir / UNITS, sum(units[at].n_requests for at in members), 0
    folder.mkdir(exist_ok=True)
    for at in members:
        unit, path = units[at], folder / f"{at}.json"
        if _answered_unit(path, unit.name) is None:
            lm.on_progress = partial(_report_unit, stage, done, unit.n_requests, total)
            unfinished = stage.scratch_dir / path.name
            unfinished.write_text(_unit_answers(lm, unit).model_dump_json())
            unfinished.rename(path)
        done += unit.n_requests
        stage.progress(done, total, "questions")


def _report_unit(stage: Stage, before: int, n: int, total: int, done: int, of: int) -> None:
    stage.progress(before + n * done // max(1, of), total, "questions")


def _unit_answers(lm: LlamaLM, unit: QuestionUnit) -> UnitAnswers:
    before, started = lm.counts(), time.monotonic()
    answers = tuple(list(each) if isinstance(each, tuple) else each for each in unit.answer())
    spent = [now - then for now, then in zip(lm.counts(), before, strict=True)]
    return UnitAnswers(
        name=unit.name, answers=answers, counts=(spent[0], spent[1], spent[2], spent[3], spent[4]),
        duration_s=time.monotonic() - started,
    )


def _answered_unit(path: Path, name: str) -> UnitAnswers | None:
    try:
        found = UnitAnswers.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.name == name else None


# ---- together ----------------------------------------------------------------------------------------


def shard_answers(folders: Sequence[Path]) -> dict[str, UnitAnswers]:
    """The answers of all shards, by the unit's name."""
    paths = (path for folder in folders for path in sorted((folder / UNITS).glob("*.json")))
    return {found.name: found for found in (UnitAnswers.model_validate_json(path.read_bytes()) for path in paths)}


def shard_records(folders: Sequence[Path]) -> list[ShardRecord]:
    """What each shard found besides."""
    return [ShardRecord.model_validate_json((folder / SHARD).read_bytes()) for folder in folders]


def shards_hardware(records: Sequence[ShardRecord]) -> JsonObject:
    """The machine of the shards; where they ran on several kinds of CPU, all are named."""
    cpus = dict.fromkeys(str(record.hardware.get("cpu", "")) for record in records)
    return {**records[0].hardware, "cpu": " + ".join(cpus)}
