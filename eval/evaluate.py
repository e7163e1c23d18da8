"""The stage `evaluate`: runs the suite's tasks on one GGUF with lm-eval, and keeps the result of every question.

The self-check runs first. The results of each entry of the suite are put in place with a rename, so an interrupted run
repeats only the entry it was in. lm-eval's own result files are kept beside them, for tools that read them.

A shard answers some of the questions (eval/tasks/sharded_questions.py); a run with the shards as inputs judges them.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pydantic import JsonValue

from eval.llama.model import GgufModel
from eval.tasks import offline
from quantyard.hardware.machine import hardware_facts, physical_cores
from quantyard.protocol.base import ExitCode, Frozen
from quantyard.protocol.evaluation import EvaluateRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage
from quantyard.protocol.shard import Shard, shard_folders
from quantyard.protocol.task_results import Evaluation, TaskOutcome

if TYPE_CHECKING:  # importing lm_eval reads the environment, so offline.take_datasets_offline must run before
    from eval.llama.lm import LlamaLM
    from eval.tasks.load import LeafTask
    from eval.tasks.sharded_questions import ShardRecord

_DONE: Final = "entry.json"
_BOOTSTRAP_ITERATIONS: Final = 1000  # for lm-eval's standard errors of the few metrics without a formula
_NO_FILE_NAME: Final = re.compile(r"[^\w.-]+")


class EntryRecord(Frozen):
    """One finished entry of the suite."""

    outcomes: tuple[TaskOutcome, ...]
    n_requests: int
    n_tokens_decoded: int
    n_tokens_requested: int
    n_truncated: int
    n_unanswered: int = 0
    duration_s: float


@dataclass
class _Counter:
    """Counts the answered questions of the whole suite, for the progress line."""

    stage: Stage
    total: int
    done: int = 0

    def part(self, share: float, questions: int, entry: str) -> None:
        """Report that this share of the current entry's `questions` is done."""
        self.stage.progress(self.done + int(share * questions), self.total, "questions", entry, begins=not share)

    def finish(self, questions: int) -> None:
        """Report that the current entry's `questions` are done."""
        self.done += questions
        self.stage.progress(self.done, self.total, "questions")


def evaluate(stage: Stage, request: EvaluateRequest) -> StageOutcome:
    """Run every task of the suite.

    Raises:
        StageFailure: the model cannot be measured, the self-check failed, or a task cannot be used.
    """
    if not request.tasks:
        return _describe_file(stage, request)
    datasets = stage.in_dir / "datasets"
    offline.take_datasets_offline(datasets if datasets.is_dir() else None, stage.scratch_dir)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    from eval.llama.lm import LlamaLM
    from eval.tasks.load import load_tasks, task_include_dir

    started = time.monotonic()
    model = stage.in_dir / "model" / request.model_file
    stage.begin("the model and its tasks are loaded")
    runtime = request.runtime
    lm = LlamaLM(
        model, runtime.max_length, runtime.threads, runtime.n_gpu_layers, request.seed, request.thought_tokens
    )
    folder = task_include_dir(stage, request.include_path)
    leaves = load_tasks(request.tasks, folder, seed=request.seed, allow_unsafe_code=request.allow_unsafe_code)
    if request.shard:
        return _evaluate_shard(stage, request, lm, leaves, request.shard)
    before = _checked_before(stage, request, lm)
    records = _evaluate_entries(stage, request, lm, leaves)
    evaluation = Evaluation(
        file=lm.model.facts(request.label, _evaluated_sha256(stage, request)), self_check=before.self_check,
        outcomes=tuple(outcome for record in records for outcome in record.outcomes),
        n_requests=sum(record.n_requests for record in records),
        n_tokens_decoded=sum(record.n_tokens_decoded for record in records),
        n_tokens_requested=sum(record.n_tokens_requested for record in records),
        n_truncated=sum(record.n_truncated for record in records),
        n_unanswered=sum(record.n_unanswered for record in records),
        duration_s=before.duration_s + time.monotonic() - started, versions=before.versions, hardware=before.hardware,
        predictions=before.predictions,
    )
    (stage.files_dir / "evaluation.json").write_text(evaluation.model_dump_json(indent=1) + "\n")
    return StageOutcome(
        facts=_evaluation_facts(evaluation, records),
        tools=_evaluation_versions(),
        argv=(("lm_eval", "llama-cpp", str(model)),),
    )


def _describe_file(stage: Stage, request: EvaluateRequest) -> StageOutcome:
    """Of a suite without tasks: what is known of the file, and its predictions; without lm-eval and the self-check of
    scores that nobody asks for.
    """
    from eval.llama.predictions import file_predictions

    started, threads = time.monotonic(), request.runtime.threads
    tools = {name: version for name, version in _evaluation_versions().items() if name in ("llama-cpp-python", "numpy")}
    stage.begin("the model is loaded")
    with GgufModel.load(stage.in_dir / "model" / request.model_file, request.runtime.n_gpu_layers) as model:
        found = Evaluation(
            file=model.facts(request.label, _evaluated_sha256(stage, request)), outcomes=(), n_requests=0,
            n_tokens_decoded=0, n_tokens_requested=0, predictions=file_predictions(model, threads), versions=tools,
            hardware=hardware_facts(threads or physical_cores()), duration_s=time.monotonic() - started,
        )
    (stage.files_dir / "evaluation.json").write_text(found.model_dump_json(indent=1) + "\n")
    return StageOutcome(facts=_evaluation_facts(found, ()), tools=tools)


def _evaluate_shard(
    stage: Stage, request: EvaluateRequest, lm: LlamaLM, leaves: Sequence[LeafTask], shard: Shard
) -> StageOutcome:
    """Check the scores on this machine, and answer the questions of this shard."""
    from eval.tasks.sharded_questions import SHARD, answer_shard, evaluation_units

    started = time.monotonic()
    units = evaluation_units(lm, leaves, request)
    record = _checked_before(stage, request, lm)
    answer_shard(stage, lm, units, shard)
    record = record.model_copy(update={"duration_s": time.monotonic() - started})
    (stage.files_dir / SHARD).write_text(record.model_dump_json(indent=1) + "\n")
    return StageOutcome(tools=_evaluation_versions())


def _checked_before(stage: Stage, request: EvaluateRequest, lm: LlamaLM) -> ShardRecord:
    """What comes before the questions: the self-check, or what shards found; `lm` then knows their answers."""
    from eval.analysis.self_check import self_check
    from eval.llama.predictions import file_predictions
    from eval.tasks.sharded_questions import ShardRecord, shard_answers, shard_records, shards_hardware

    if folders := shard_folders(stage.in_dir):
        lm.answered, records = shard_answers(folders), shard_records(folders)
        took_s = sum(record.duration_s for record in records)
        return records[0].model_copy(update={"hardware": shards_hardware(records), "duration_s": took_s})
    stage.begin("self-check of the scores")
    checked = self_check(lm)
    return ShardRecord(
        self_check=checked, versions=_evaluation_versions(), hardware=hardware_facts(lm.scorer.n_threads),
        predictions=file_predictions(lm.model, request.runtime.threads), duration_s=0.0,
    )


def _evaluate_entries(
    stage: Stage, request: EvaluateRequest, lm: LlamaLM, leaves: Sequence[LeafTask]
) -> list[EntryRecord]:
    for unfinished in stage.files_dir.glob(".*"):
        shutil.rmtree(unfinished)
    by_entry: dict[str, list[LeafTask]] = {}
    for leaf in leaves:
        by_entry.setdefault(leaf.entry.task, []).append(leaf)
    counter = _Counter(stage, sum(_n_leaf_questions(leaf) for leaf in leaves))
    return [_evaluate_entry(stage, request, lm, name, members, counter) for name, members in by_entry.items()]


def _evaluate_entry(
    stage: Stage, request: EvaluateRequest, lm: LlamaLM, name: str, leaves: list[LeafTask], counter: _Counter
) -> EntryRecord:
    """Run one entry of the suite, or read what an earlier run finished."""
    slug = _NO_FILE_NAME.sub("_", name)
    final, n_questions = stage.files_dir / slug, sum(_n_leaf_questions(leaf) for leaf in leaves)
    if (final / _DONE).exists():
        stage.log(f"{name} was finished before")
        record = EntryRecord.model_validate_json((final / _DONE).read_bytes())
    else:
        unfinished = stage.files_dir / f".{slug}"
        unfinished.mkdir()
        counter.part(0, n_questions, name)
        lm.on_progress = lambda done, total: counter.part(done / max(1, total), n_questions, name)
        record = _evaluate_tasks(request, lm, leaves, unfinished)
        (unfinished / _DONE).write_text(record.model_dump_json())
        unfinished.rename(final)
    counter.finish(n_questions)
    return record


def _evaluate_tasks(request: EvaluateRequest, lm: LlamaLM, leaves: list[LeafTask], folder: Path) -> EntryRecord:
    from lm_eval.evaluator import evaluate as lm_evaluate

    from eval.tasks.drawn_questions import ask_drawn_questions
    from eval.tasks.outcomes import layout_noise_by_task, task_outcomes, write_task_results

    started, before_s = time.monotonic(), lm.answered_s
    lm.blocks = {leaf.name: ask_drawn_questions(leaf.task, leaf.entry.limit, request.seed) for leaf in leaves}
    before = lm.counts()
    try:
        results: Any = lm_evaluate(
            lm, {"tasks": {leaf.name: leaf.task for leaf in leaves}, "groups": {}},
            bootstrap_iters=_BOOTSTRAP_ITERATIONS, log_samples=True, apply_chat_template=request.apply_chat_template,
            fewshot_as_multiturn=request.apply_chat_template, confirm_run_unsafe_code=request.allow_unsafe_code,
        )
    except OverflowError as error:  # lm-eval's exp of the mean loss
        message = f"The perplexity of {leaves[0].entry.task} is beyond any measure: larger than any number."
        hint = "The model's weights may be random or broken: try another checkpoint."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "not-finite", message, hint) from error
    noise = layout_noise_by_task(lm, leaves, results["samples"])
    duration_s = time.monotonic() - started + lm.answered_s - before_s
    outcomes = task_outcomes(results, leaves, duration_s, noise)
    write_task_results(results, lm, request, folder)
    spent = [now - then for now, then in zip(lm.counts(), before, strict=True)]
    return EntryRecord(
        outcomes=outcomes, n_requests=spent[0], n_tokens_decoded=spent[1], n_tokens_requested=spent[2],
        n_truncated=spent[3], n_unanswered=spent[4], duration_s=duration_s,
    )


def _n_leaf_questions(leaf: LeafTask) -> int:
    n = len(leaf.task.eval_docs)
    return min(n, leaf.entry.limit or n)


def _evaluated_sha256(stage: Stage, request: EvaluateRequest) -> str | None:
    return next((file.sha256 for file in stage.input_files("model") if file.path == request.model_file), None)


def _evaluation_versions() -> dict[str, str]:
    names = {"lm-eval": "lm_eval", "llama-cpp-python": "llama_cpp_python", "datasets": "datasets", "numpy": "numpy"}
    return {name: importlib.metadata.version(package) for name, package in names.items()}


def _evaluation_facts(evaluation: Evaluation, records: Sequence[EntryRecord]) -> dict[str, JsonValue]:
    asked_s = sum(record.duration_s for record in records)
    tasks: dict[str, JsonValue] = {
        outcome.task: {metric.name: metric.value for metric in outcome.metrics} for outcome in evaluation.outcomes
    }
    return {
        "n_questions": sum(outcome.n for outcome in evaluation.outcomes), "n_requests": evaluation.n_requests,
        "requests_per_s": evaluation.n_requests / asked_s if asked_s else 0.0, "tasks": tasks,
    }


def main() -> NoReturn:
    """Entry point of the stage."""
    run_stage(EvaluateRequest, evaluate)


if __name__ == "__main__":
    main()
