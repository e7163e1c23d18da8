"""Compares two evaluations: scores with their intervals, paired differences, and verdicts.

A metric of a task becomes a `MetricColumn`: its value for each question, and the kind of these values. A group (an
entry of the suite that stands for several tasks) becomes a column of all its questions, so every question weighs the
same. A metric that is not a function of its per-question values (lm-eval's F1, Matthews correlation, BLEU over a
corpus) has a score with lm-eval's own standard error, and no comparison.

Verdicts, in this order:

1. "no signal": the baseline's interval contains chance or lies below it, so any difference is noise.
2. "same": the whole interval of the difference lies within ± margin, so any difference is too small to matter.
3. "worse", "better": the interval of the difference excludes 0, and for right-or-wrong metrics McNemar's exact
   test agrees (p < 0.05).
4. "too few questions": none of these; `questions_needed` estimates how many questions would settle it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.analysis import statistics
from eval.analysis.statistics import Numbers, as_float64
from quantyard.metrics.intervals import Z, wilson_interval
from quantyard.protocol.measurements import (
    CONFIDENCE,
    Comparison,
    Evaluation,
    Interval,
    MetricOutcome,
    Score,
    TaskOutcome,
    Verdict,
)

Kind = Literal["right or wrong", "mean", "perplexity", "bits", "opaque"]
Key = tuple[str, str]  # task, metric


class NotComparable(Exception):
    """Two evaluations did not ask the same questions."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.hint = "Evaluate both files with the same suite and the same data sets."


@dataclass(frozen=True)
class MetricColumn:
    """One metric of one task or group on one file.

    `values` has the shape (n,), or (n, 2) for perplexities and bits: loglikelihood and weight.
    """

    key: Key
    kind: Kind
    n: int
    value: float  # lm-eval's aggregate; for a group, the aggregate over all its questions
    higher_is_better: bool
    chance: float | None
    values: Numbers
    stderr: float | None = None  # lm-eval's; used for opaque metrics only

    @property
    def interval(self) -> Interval:
        """The score and its interval."""
        if self.kind == "right or wrong":
            return wilson_interval(float(self.values.sum()), self.n)
        if self.kind == "mean":
            return statistics.mean_interval(self.values)
        if self.kind == "perplexity":
            return statistics.perplexity_interval(self.values[:, 0], self.values[:, 1])
        if self.kind == "bits":
            return statistics.bits_interval(self.values[:, 0], self.values[:, 1])
        half = Z * (self.stderr or 0.0)
        return Interval(value=self.value, low=self.value - half, high=self.value + half)


def evaluation_scores(evaluation: Evaluation) -> tuple[Score, ...]:
    """Every metric of every task and group of one file; a group comes before its tasks."""
    return tuple(
        Score(
            task=c.key[0], metric=c.key[1], n=c.n, result=c.interval, chance=c.chance,
            higher_is_better=c.higher_is_better,
        )
        for c in _columns(evaluation).values()
    )  # fmt: skip


def compare_evaluations(baseline: Evaluation, other: Evaluation, margin: float) -> tuple[Comparison, ...]:
    """Compare every metric of `other` with the baseline's, question by question.

    `margin` is absolute for metrics whose values lie in 0 to 1 (0.01: one point of accuracy), else relative to the
    baseline's value. A mean or a perplexity of one question has no interval, so it is not compared.

    Raises:
        NotComparable: the evaluations did not ask the same questions.
    """
    _refuse_other_questions(baseline, other)
    ours, theirs = _columns(baseline), _columns(other)
    pairs = ((column, theirs[key]) for key, column in ours.items() if key in theirs)
    return tuple(_compare(one, two, margin) for one, two in pairs if _comparable(one, two))


# ---- columns -----------------------------------------------------------------------------------------


def _columns(evaluation: Evaluation) -> dict[Key, MetricColumn]:
    """All columns, groups first; where two entries of the suite have the same task, the first one counts."""
    found: dict[Key, MetricColumn] = {}
    asked = Counter(o.task for o in {(o.task, o.num_fewshot): o for o in evaluation.outcomes}.values())
    for entry in dict.fromkeys(outcome.entry for outcome in evaluation.outcomes):
        outcomes = [o for o in evaluation.outcomes if o.entry == entry]
        columns = [_column(o, m, asked[o.task] > 1) for o in outcomes for m in o.metrics if _wanted(m)]
        is_group = any(o.task != entry for o in outcomes)
        for column in [*(_pooled(entry, columns, len(outcomes)) if is_group else ()), *columns]:
            found.setdefault(column.key, column)
    return found


def _wanted(metric: MetricOutcome) -> bool:
    return not metric.name.endswith("_stderr") and bool(metric.per_question) and math.isfinite(metric.value)


def _column(outcome: TaskOutcome, metric: MetricOutcome, shots_tell: bool) -> MetricColumn:
    task = f"{outcome.task} ({outcome.num_fewshot}-shot)" if shots_tell else outcome.task
    name = metric.name if metric.filter == "none" else f"{metric.name},{metric.filter}"
    kind, values = _kind(metric)
    chance = outcome.chance if kind == "right or wrong" and metric.higher_is_better else None
    n, better = len(metric.per_question), metric.higher_is_better
    return MetricColumn((task, name), kind, n, metric.value, better, chance, values, metric.stderr)


def _kind(metric: MetricOutcome) -> tuple[Kind, Numbers]:
    """The kind of the per-question values; "opaque" unless aggregating them reproduces lm-eval's own value."""
    pairs = isinstance(metric.per_question[0], tuple)
    values = as_float64(metric.per_question)
    kind: Kind = "right or wrong" if not pairs and np.isin(values, (0.0, 1.0)).all() else "mean"
    if metric.name.endswith("perplexity"):
        kind = "perplexity"
        values = values if pairs else np.stack([values, np.ones_like(values)], axis=1)  # lambada's, per document
    elif metric.name == "bits_per_byte":
        kind = "bits"
    elif pairs:
        return "opaque", values
    if not math.isclose(_aggregate(kind, values), metric.value, rel_tol=1e-6, abs_tol=1e-9):
        return "opaque", values
    return kind, values


def _aggregate(kind: Kind, values: Numbers) -> float:
    if kind in ("right or wrong", "mean"):
        return float(values.mean())
    nats = -float(values[:, 0].sum() / values[:, 1].sum())
    return math.exp(nats) if kind == "perplexity" else nats / math.log(2)


def _pooled(entry: str, columns: Sequence[MetricColumn], n_tasks: int) -> Iterator[MetricColumn]:
    """A group's columns: one for each metric that all its tasks have, over all their questions."""
    for name in dict.fromkeys(column.key[1] for column in columns):
        parts = [column for column in columns if column.key[1] == name]
        kinds = {column.kind for column in parts}
        if len(parts) < n_tasks or "opaque" in kinds or len(kinds - {"right or wrong", "mean"}) > 1:
            continue
        kind = parts[0].kind if len(kinds) == 1 else "mean"
        values, n = np.concatenate([part.values for part in parts]), sum(part.n for part in parts)
        value = _aggregate(kind, values)
        yield MetricColumn((entry, name), kind, n, value, parts[0].higher_is_better, _chance(parts), values)


def _chance(parts: Iterable[MetricColumn]) -> float | None:
    """A group's chance level: the mean over all questions, or None if a task has none."""
    total, n = 0.0, 0
    for part in parts:
        if part.chance is None:
            return None
        total, n = total + part.chance * part.n, n + part.n
    return total / n


# ---- pairs -------------------------------------------------------------------------------------------


def _refuse_other_questions(baseline: Evaluation, other: Evaluation) -> None:
    ours, theirs = _by_task(baseline), _by_task(other)
    one, two = baseline.file.label, other.file.label
    for key in (*ours, *(key for key in theirs if key not in ours)):
        if key not in ours or key not in theirs:
            has, lacks = (one, two) if key in ours else (two, one)
            raise NotComparable(f"Task {key[1]} ({key[2]}-shot) was run on {has} but not on {lacks}.")
        _refuse_other_documents(ours[key], theirs[key], f"of task {key[1]} differ between {one} and {two}")


def _by_task(evaluation: Evaluation) -> Mapping[tuple[str, str, int], TaskOutcome]:
    return {(o.entry, o.task, o.num_fewshot): o for o in evaluation.outcomes}


def _refuse_other_documents(ours: TaskOutcome, theirs: TaskOutcome, differ: str) -> None:
    if ours.version != theirs.version:
        raise NotComparable(f"The versions {differ}: {ours.version} and {theirs.version}.")
    if len(ours.doc_hashes) != len(theirs.doc_hashes):
        raise NotComparable(f"The questions {differ}: {len(ours.doc_hashes)} and {len(theirs.doc_hashes)} of them.")
    for i, (one, two) in enumerate(zip(ours.doc_hashes, theirs.doc_hashes, strict=True)):
        if one != two:
            raise NotComparable(f"The questions {differ}: the first at position {i}, {one[:12]} and {two[:12]}.")


def _comparable(one: MetricColumn, two: MetricColumn) -> bool:
    """Whether the difference can be computed from the questions and has an interval."""
    if "opaque" in (one.kind, two.kind) or one.values.shape != two.values.shape:
        return False
    if one.kind in ("perplexity", "bits"):
        return one.n > 1 and bool(np.allclose(one.values[:, 1], two.values[:, 1]))
    return one.n > 1 or one.kind == two.kind == "right or wrong"


def _compare(one: MetricColumn, two: MetricColumn, margin: float) -> Comparison:
    lost = gained = 0
    p: float | None = None
    if one.kind == two.kind == "right or wrong":
        lost = int(((one.values == 1) & (two.values == 0)).sum())
        gained = int(((one.values == 0) & (two.values == 1)).sum())
        p = statistics.mcnemar_p(lost, gained)
        delta = statistics.paired_proportions_interval(lost, gained, one.n)
    else:
        delta = _delta(one, two)
    allowed = margin * _margin_unit(one, two)
    verdict = _verdict(one, delta, p, allowed)
    return Comparison(
        task=one.key[0], metric=one.key[1], n=one.n, baseline=one.value, value=two.value, delta=delta,
        lost=lost, gained=gained, mcnemar_p=p, verdict=verdict,
        questions_needed=_needed(delta, one.n, (lost, gained) if p is not None else None, allowed)
        if verdict == "too few questions" else None,
    )  # fmt: skip


def _delta(one: MetricColumn, two: MetricColumn) -> Interval:
    if one.kind == "perplexity":
        return statistics.perplexity_change(one.values[:, 0], two.values[:, 0], one.values[:, 1])
    if one.kind == "bits":
        return statistics.bits_change(one.values[:, 0], two.values[:, 0])
    return statistics.paired_means_interval(one.values, two.values)


def _margin_unit(one: MetricColumn, two: MetricColumn) -> float:
    """1 if the margin is absolute or the delta is already relative, else the magnitude of the baseline's value."""
    if one.kind in ("perplexity", "bits"):
        return 1.0
    values = np.concatenate([one.values, two.values])
    return 1.0 if values.min() >= 0 and values.max() <= 1 else abs(one.value) or 1.0


def _verdict(one: MetricColumn, delta: Interval, p: float | None, margin: float) -> Verdict:
    if one.chance is not None and one.interval.low <= one.chance:
        return "no signal"
    if delta.low >= -margin and delta.high <= margin:
        return "same"  # even if the interval excludes 0: a difference within the margin does not matter
    if (delta.low > 0 or delta.high < 0) and (p is None or p < 1 - CONFIDENCE):
        return "better" if (delta.value > 0) == one.higher_is_better else "worse"
    return "too few questions"


def _needed(delta: Interval, n: int, flips: tuple[int, int] | None, margin: float) -> int:
    if flips is not None:
        return statistics.questions_needed_for_proportions(*flips, n, margin)
    return statistics.questions_needed_for_means(delta, n, margin)
