"""Compares a file with the baseline, question by question: differences, their intervals and tests.

Two evaluations are comparable if they asked the same questions; else the difference would be one of questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eval.analysis import statistics
from eval.analysis.columns import MetricColumn, metric_columns
from quantyard.protocol.estimates import Interval
from quantyard.protocol.task_results import Evaluation, TaskOutcome


class NotComparable(Exception):
    """Two evaluations did not ask the same questions."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.hint = "Evaluate both files with the same suite and the same data sets."


@dataclass(frozen=True)
class PairedDifference:
    """A file's metric beside the baseline's. `delta` is in the metric's unit, or relative for perplexities and bits;
    `p` is that of the test that there is no difference. `flips` are the questions lost and gained, None for a metric
    that is not right-or-wrong; where questions come in groups, `effect` of them say as much as one.
    """

    baseline: MetricColumn
    file: MetricColumn
    delta: Interval
    p: float
    margin: float  # in the unit of `delta`
    flips: tuple[int, int] | None = None
    effect: float = 1.0

    @property
    def has_signal(self) -> bool:
        """Whether the baseline can be distinguished from guessing."""
        return self.baseline.chance is None or self.baseline.interval.low > self.baseline.chance

    @property
    def n(self) -> int:
        """Questions."""
        return self.baseline.n


def paired_differences(baseline: Evaluation, other: Evaluation, margin: float) -> tuple[PairedDifference, ...]:
    """Compare every metric of `other` with the baseline's, question by question.

    `margin` is absolute for metrics whose values lie in 0 to 1 (0.01: one point of accuracy), else relative to the
    baseline's value. A mean or a perplexity of one question has no interval, so it is not compared.

    Raises:
        NotComparable: the evaluations did not ask the same questions.
    """
    _refuse_other_questions(baseline, other)
    ours, theirs = metric_columns(baseline), metric_columns(other)
    pairs = ((column, theirs[key]) for key, column in ours.items() if key in theirs)
    return tuple(_paired_difference(one, two, margin) for one, two in pairs if _are_columns_comparable(one, two))


def _refuse_other_questions(baseline: Evaluation, other: Evaluation) -> None:
    ours, theirs = _outcomes_by_task(baseline), _outcomes_by_task(other)
    one, two = baseline.file.label, other.file.label
    for key in (*ours, *(key for key in theirs if key not in ours)):
        if key not in ours or key not in theirs:
            has, lacks = (one, two) if key in ours else (two, one)
            raise NotComparable(f"Task {key[1]} ({key[2]}-shot) was run on {has} but not on {lacks}.")
        _refuse_other_paired_documents(ours[key], theirs[key], f"of task {key[1]} differ between {one} and {two}")


def _outcomes_by_task(evaluation: Evaluation) -> Mapping[tuple[str, str, int], TaskOutcome]:
    return {(o.entry, o.task, o.num_fewshot): o for o in evaluation.outcomes}


def _refuse_other_paired_documents(ours: TaskOutcome, theirs: TaskOutcome, differ: str) -> None:
    if ours.version != theirs.version:
        raise NotComparable(f"The versions {differ}: {ours.version} and {theirs.version}.")
    if len(ours.doc_hashes) != len(theirs.doc_hashes):
        raise NotComparable(f"The questions {differ}: {len(ours.doc_hashes)} and {len(theirs.doc_hashes)} of them.")
    for i, (one, two) in enumerate(zip(ours.doc_hashes, theirs.doc_hashes, strict=True)):
        if one != two:
            raise NotComparable(f"The questions {differ}: the first at position {i}, {one[:12]} and {two[:12]}.")


def _are_columns_comparable(one: MetricColumn, two: MetricColumn) -> bool:
    """Whether the difference can be computed from the questions and has an interval."""
    if "opaque" in (one.kind, two.kind) or one.values.shape != two.values.shape:
        return False
    if one.kind in ("perplexity", "bits"):
        return one.n > 1 and bool(np.allclose(one.values[:, 1], two.values[:, 1]))
    return one.n > 1 or one.kind == two.kind == "right or wrong"


def _paired_difference(one: MetricColumn, two: MetricColumn, margin: float) -> PairedDifference:
    allowed = margin * _margin_unit_of_comparison(one, two)
    if one.kind == two.kind == "right or wrong":
        return _flipped_answers(one, two, allowed)
    if one.kind == "perplexity":
        texts = (one.values[:, 0], two.values[:, 0], one.values[:, 1])
        delta, p = statistics.perplexity_change(*texts), statistics.perplexity_change_p(*texts)
    elif one.kind == "bits":
        nats = (one.values[:, 0], two.values[:, 0])
        delta, p = statistics.bits_change(*nats), statistics.bits_change_p(*nats)
    else:
        values = (one.values, two.values, one.groups)
        delta, p = statistics.paired_means_interval(*values), statistics.paired_means_p(*values)
    return PairedDifference(one, two, delta, p, allowed)


def _flipped_answers(one: MetricColumn, two: MetricColumn, margin: float) -> PairedDifference:
    """Answers that are right or wrong; with groups, counts are those of as many questions as they are worth."""
    lost = int(((one.values == 1) & (two.values == 0)).sum())
    gained = int(((one.values == 0) & (two.values == 1)).sum())
    effect = statistics.design_effect(two.values - one.values, one.groups)
    delta = statistics.paired_proportions_interval(lost / effect, gained / effect, one.n / effect)
    p = statistics.mcnemar_p(round(lost / effect), round(gained / effect))
    return PairedDifference(one, two, delta, p, margin, (lost, gained), effect)


def _margin_unit_of_comparison(one: MetricColumn, two: MetricColumn) -> float:
    """1 if the margin is absolute or the delta is already relative, else the magnitude of the baseline's value."""
    if one.kind in ("perplexity", "bits"):
        return 1.0
    values = np.concatenate([one.values, two.values])
    return 1.0 if values.min() >= 0 and values.max() <= 1 else abs(one.value) or 1.0
