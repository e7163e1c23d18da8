"""Selects the scores to show first; shared by the report, the card, the page and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:  # a build has neither suite nor scores
    from quantyard.protocol.evaluation import Suite
    from quantyard.protocol.measurements import Comparison, Score

_HEADLINES: Final = ("acc_norm", "acc", "exact_match")
Found = TypeVar("Found", "Score", "Comparison")


def headline_scores(suite: Suite, found: Sequence[Found]) -> tuple[Found, ...]:
    """One score, or comparison, per entry of the suite, in the suite's order.

    Falls back to one per task if the tasks of a group have no metric in common.
    """
    entries = list(dict.fromkeys(entry.task for entry in suite.tasks))
    by_task: dict[str, list[Found]] = {}
    for score in found:
        by_task.setdefault(score.task, []).append(score)
    names = {name: headline_entry(name) for name in by_task}
    if set(entries) <= set(names.values()):
        order = sorted((name for name in by_task if names[name] in entries), key=lambda n: entries.index(names[n]))
    else:
        order = list(by_task)
    return tuple(min(by_task[name], key=lambda score: metric_rank(score.metric)) for name in order)


def headline_entry(task: str) -> str:
    """The suite's entry of a task: "mmlu" for "mmlu (57 tasks)" or "mmlu (5-shot)"."""
    return task.rsplit(" (", 1)[0]


def metric_rank(metric: str) -> int:
    """The rank of a metric: 0 for the usual one, more for the others."""
    name = metric.split(",", maxsplit=1)[0]
    return _HEADLINES.index(name) if name in _HEADLINES else len(_HEADLINES)


def is_perplexity_metric(metric: str) -> bool:
    """Whether the delta of this metric's comparisons is relative."""
    name = metric.split(",", maxsplit=1)[0]
    return name.endswith("perplexity") or name == "bits_per_byte"
