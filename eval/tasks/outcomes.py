"""Converts lm-eval's results to `TaskOutcome`, and writes lm-eval's own result files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from lm_eval.loggers import EvaluationTracker

from eval.llama.layout_noise import layout_noise_of_task
from eval.tasks.passages import question_groups
from quantyard.protocol.evaluation import EvaluateRequest
from quantyard.protocol.task_results import LayoutNoise, MetricOutcome, TaskOutcome

if TYPE_CHECKING:
    from eval.llama.lm import LlamaLM
    from eval.tasks.load import LeafTask

# Metrics whose value for a question is (loglikelihood, weight): lm_eval/api/metrics.py, weighted_perplexity and
# bits_per_byte. `perplexity` (lambada) has only the loglikelihood, and every question the weight 1.
_WEIGHTED: Final = frozenset({"word_perplexity", "byte_perplexity", "bits_per_byte"})
_UNWEIGHTED: Final = frozenset({"perplexity"})
_TOLERANCE: Final = 1e-6
Value = float | tuple[float, float]


def task_outcomes(
    results: Any, leaves: Sequence[LeafTask], duration_s: float, noise: Mapping[str, LayoutNoise | None]
) -> tuple[TaskOutcome, ...]:
    """One outcome per task of one entry of a suite; `duration_s` is divided in proportion to their questions.

    Args:
        noise: task → the noise of its packing, where that was measured.
    """
    n_all = sum(_n_questions_of_task(results, leaf.name) for leaf in leaves)
    return tuple(
        _task_outcome(results, leaf, duration_s * _n_questions_of_task(results, leaf.name) / max(1, n_all)).model_copy(
            update={"layout_noise": noise.get(leaf.name)}
        )
        for leaf in leaves
    )


def layout_noise_by_task(
    lm: LlamaLM, leaves: Sequence[LeafTask], samples: Mapping[str, Sequence[Any]]
) -> dict[str, LayoutNoise | None]:
    """Task → the noise of the packing of its questions, for tasks whose answers are loglikelihoods."""
    found = dict[str, LayoutNoise | None]()
    for leaf in leaves:
        if leaf.output_type in ("multiple_choice", "loglikelihood"):
            of_task = samples[leaf.name]
            found[leaf.name] = layout_noise_of_task(
                lm, [s for s in of_task if s["filter"] == of_task[0]["filter"]], leaf.name
            )
    return found


def _n_questions_of_task(results: Any, task: str) -> int:
    return len({sample["doc_id"] for sample in results["samples"][task]})


def _task_outcome(results: Any, leaf: LeafTask, duration_s: float) -> TaskOutcome:
    samples = results["samples"][leaf.name]
    first_filter = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return TaskOutcome(
        task=leaf.name, entry=leaf.entry.task, version=leaf.version,
        output_type=leaf.output_type,  # type: ignore[arg-type]
        num_fewshot=leaf.num_fewshot, n=len(first_filter), chance=_task_chance(leaf, first_filter),
        doc_hashes=tuple(sample["doc_hash"] for sample in first_filter),
        groups=question_groups([sample["doc"] for sample in first_filter]),
        metrics=tuple(_task_metrics(results, leaf.name)), duration_s=duration_s,
    )


def _task_chance(leaf: LeafTask, samples: Sequence[Any]) -> float | None:
    """The accuracy of guessing: the mean of 1 / choices. acc_mutual_info has two requests per choice."""
    if leaf.output_type != "multiple_choice" or not samples:
        return None
    per_choice = 2 if "acc_mutual_info" in samples[0]["metrics"] else 1
    return float(np.mean([per_choice / len(sample["arguments"]) for sample in samples]))


def _task_metrics(results: Any, task: str) -> Iterator[MetricOutcome]:
    """Metrics that are the mean of finite values of each question. Others, such as BLEU over a corpus, are left out."""
    found, better = results["results"][task], results["higher_is_better"][task]
    by_filter: dict[str, list[Any]] = {}
    for sample in results["samples"][task]:
        by_filter.setdefault(sample["filter"], []).append(sample)
    for name, samples in by_filter.items():
        for metric in samples[0]["metrics"]:
            value = found.get(f"{metric},{name}")
            per_question = _metric_per_question(metric, [sample[metric] for sample in samples])
            if not isinstance(value, float | int) or per_question is None:
                continue
            if not np.isfinite([value, *np.ravel(per_question)]).all() or not _is_metric_mean(per_question, value):
                continue
            stderr = found.get(f"{metric}_stderr,{name}")
            yield MetricOutcome(
                name=metric, filter=name, value=float(value),
                stderr=float(stderr) if isinstance(stderr, float | int) and math.isfinite(stderr) else None,
                higher_is_better=bool(better.get(metric, True)), per_question=per_question,
            )


def _metric_per_question(metric: str, values: Sequence[Any]) -> tuple[Value, ...] | None:
    try:
        if metric in _WEIGHTED:
            return tuple((float(loglikelihood), float(weight)) for loglikelihood, weight in values)
        if metric in _UNWEIGHTED:
            return tuple((float(value), 1.0) for value in values)
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):  # a corpus metric: its questions hold inputs of the metric, not values
        return None


def _is_metric_mean(values: Sequence[Value], aggregate: float) -> bool:
    """Whether lm-eval's value is the mean of the questions' values; weighted metrics pass, they have their own mean."""
    numbers = [value for value in values if isinstance(value, float)]
    return len(numbers) < len(values) or abs(float(np.mean(numbers)) - aggregate) <= _TOLERANCE


def write_task_results(results: Any, lm: LlamaLM, request: EvaluateRequest, folder: Path) -> None:
    """Write lm-eval's own results and samples, with its own writer.

    Raises:
        OSError: files are missing; the writer itself only logs its errors.
    """
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(
        model_source="llama-cpp", model_args=f"path={request.model_file}", system_instruction="",
        chat_template=lm.chat_template(request.apply_chat_template), fewshot_as_multiturn=request.apply_chat_template,
    )
    samples = results.pop("samples")
    results["config"] = {
        "model": "llama-cpp", "model_args": f"path={request.model_file}", **lm.get_model_info(),
        "limit": [entry.model_dump() for entry in request.tasks], "fewshot_seed": request.seed,
    }
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, answers in samples.items():
        tracker.save_results_samples(task_name=task, samples=answers)
    if not list(folder.rglob("results_*.json")) or len(list(folder.rglob("samples_*.jsonl"))) != len(samples):
        message = f"lm-eval could not write its results to {folder}"
        raise OSError(message)
