"""The metrics of an evaluation as columns of values, one for each question, with their scores and intervals.

A metric of a task becomes a `MetricColumn`: its value for each question, and the kind of these values. A group (an
entry of the suite that stands for several tasks) becomes a column of all its questions, so every question weighs the
same. A metric that is not a function of its per-question values (lm-eval's F1, Matthews correlation, BLEU over a
corpus) has a score with lm-eval's own standard error, and no comparison.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.analysis import statistics
from eval.analysis.statistics import Numbers, as_float64
from quantyard.metrics.intervals import Z
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import Score
from quantyard.protocol.task_results import Evaluation, MetricOutcome, TaskOutcome

Kind = Literal["right or wrong", "mean", "perplexity", "bits", "opaque"]
Key = tuple[str, str]  # task, metric


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
    groups: tuple[int, ...] | None = None  # of each question, those about one passage; None: each is independent

    @property
    def interval(self) -> Interval:
        """The score and its interval."""
        if self.kind == "right or wrong":
            return statistics.proportion_interval(self.values, self.groups)
        if self.kind == "mean":
            return statistics.mean_interval(self.values, self.groups)
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
        for c in metric_columns(evaluation).values()
    )  # fmt: skip


def metric_columns(evaluation: Evaluation) -> dict[Key, MetricColumn]:
    """All columns, groups first; where two entries of the suite have the same task, the first one counts."""
    found: dict[Key, MetricColumn] = {}
    asked = Counter(o.task for o in {(o.task, o.num_fewshot): o for o in evaluation.outcomes}.values())
    for entry in dict.fromkeys(outcome.entry for outcome in evaluation.outcomes):
        outcomes = [o for o in evaluation.outcomes if o.entry == entry]
        columns = [
            _metric_column(o, m, asked[o.task] > 1) for o in outcomes for m in o.metrics if _is_metric_compared(m)
        ]
        is_group = any(o.task != entry for o in outcomes)
        for column in [*(_pooled_group_columns(entry, columns, len(outcomes)) if is_group else ()), *columns]:
            found.setdefault(column.key, column)
    return found


def _is_metric_compared(metric: MetricOutcome) -> bool:
    return not metric.name.endswith("_stderr") and bool(metric.per_question) and math.isfinite(metric.value)


def _metric_column(outcome: TaskOutcome, metric: MetricOutcome, shots_tell: bool) -> MetricColumn:
    task = f"{outcome.task} ({outcome.num_fewshot}-shot)" if shots_tell else outcome.task
    name = metric.name if metric.filter == "none" else f"{metric.name},{metric.filter}"
    kind, values = _metric_kind(metric)
    chance = outcome.chance if kind == "right or wrong" and metric.higher_is_better else None
    n, better = len(metric.per_question), metric.higher_is_better
    groups = outcome.groups or None
    return MetricColumn((task, name), kind, n, metric.value, better, chance, values, metric.stderr, groups)


def _metric_kind(metric: MetricOutcome) -> tuple[Kind, Numbers]:
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
    if not math.isclose(_aggregate_metric(kind, values), metric.value, rel_tol=1e-6, abs_tol=1e-9):
        return "opaque", values
    return kind, values


def _aggregate_metric(kind: Kind, values: Numbers) -> float:
    if kind in ("right or wrong", "mean"):
        return float(values.mean())
    nats = -float(values[:, 0].sum() / values[:, 1].sum())
    return math.exp(nats) if kind == "perplexity" else nats / math.log(2)


def _pooled_group_columns(entry: str, columns: Sequence[MetricColumn], n_tasks: int) -> Iterator[MetricColumn]:
    """A group's columns: one for each metric that all its tasks have, over all their questions."""
    for name in dict.fromkeys(column.key[1] for column in columns):
        parts = [column for column in columns if column.key[1] == name]
        kinds = {column.kind for column in parts}
        if len(parts) < n_tasks or "opaque" in kinds or len(kinds - {"right or wrong", "mean"}) > 1:
            continue
        kind = parts[0].kind if len(kinds) == 1 else "mean"
        values, n = np.concatenate([part.values for part in parts]), sum(part.n for part in parts)
        value, better = _aggregate_metric(kind, values), parts[0].higher_is_better
        groups = _pooled_groups(parts)
        yield MetricColumn((entry, name), kind, n, value, better, _group_chance(parts), values, groups=groups)


def _pooled_groups(columns: Sequence[MetricColumn]) -> tuple[int, ...] | None:
    """The groups of all tasks, numbered on; None if no task has any."""
    if not any(column.groups for column in columns):
        return None
    found: list[int] = []
    for column in columns:
        start = max(found, default=-1) + 1
        found += [start + group for group in (column.groups or range(column.n))]
    return tuple(found)


def _group_chance(parts: Iterable[MetricColumn]) -> float | None:
    """A group's chance level: the mean over all questions, or None if a task has none."""
    total, n = 0.0, 0
    for part in parts:
        if part.chance is None:
            return None
        total, n = total + part.chance * part.n, n + part.n
    return total / n
