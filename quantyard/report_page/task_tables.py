"""What the comparison page says of tasks: one row per file, task and metric, and how their numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from quantyard.formatting.numbers import DASH, digits, percent, signed
from quantyard.metrics.headline_metrics import is_perplexity
from quantyard.protocol.evaluation import Comparison, EvalReport, Score
from quantyard.report_page.marks import MARK_OF, VERDICTS
from quantyard.report_page.tables import Cell, Column, PageFile, PageTable, Row, change_places

_NOT_COMPARED: Final = "not compared"


def tasks_table(report: EvalReport, files: Sequence[PageFile]) -> PageTable:
    """Every comparison with the baseline; a score that could not be compared stands there without one."""
    columns = (
        Column("File", "quantization type", "name"),
        Column("Task", "of lm-evaluation-harness, or the suite's own", "text"),
        Column("Metric", "and lm-eval's filter, where there is one", "text"), Column("n", "questions"),
        Column(report.baseline, "the baseline's value"), Column("Value", "the file's value"),
        Column("Δ", "percentage points; of perplexities in %; below it the 95 % interval"),
        Column("Verdict", "what follows from the interval", "text"),
    )  # fmt: skip
    rows = tuple(row for s in files for row in _rows(s))
    return PageTable("tasks", "Every task beside the baseline", columns, rows)


def _rows(s: PageFile) -> Iterator[Row]:
    if s.found is None:
        return
    compared = {(c.task, c.metric) for c in s.found.comparisons}
    for c in s.found.comparisons:
        yield Row(s.number, (_text(s.label, "name"), *_comparison_cells(c)), c.verdict)
    for score in s.found.scores:
        if not s.is_baseline and (score.task, score.metric) not in compared:
            yield Row(s.number, (_text(s.label, "name"), *_score_cells(score)), _NOT_COMPARED)


def scores_table(report: EvalReport, files: Sequence[PageFile]) -> PageTable:
    """The baseline's own scores, where nothing stands beside it."""
    columns = (
        Column("File", "", "name"), Column("Task", "", "text"), Column("Metric", "", "text"), Column("n", "questions"),
        Column("Value", "with its 95 % interval"),
    )  # fmt: skip
    baseline = next(s for s in files if s.is_baseline)
    rows = tuple(
        Row(baseline.number, (_text(baseline.label, "name"), _text(s.task), _text(s.metric), _count(s.n), _score(s)))
        for s in report.measurements[0].scores
    )  # fmt: skip
    return PageTable("tasks", "Scores of the baseline", columns, rows)


def _comparison_cells(c: Comparison) -> tuple[Cell, ...]:
    low, high = delta_text(c, c.delta.low), delta_text(c, c.delta.high)
    needed = f"{c.questions_needed:,} would do" if c.questions_needed else ""
    return (
        _text(c.task), _text(c.metric), _count(c.n), Cell(value_text(c, c.baseline), sort=c.baseline),
        Cell(value_text(c, c.value), sort=c.value),
        Cell(f"{delta_text(c, c.delta.value)}{delta_unit(c)}", f"{low} to {high}", c.delta.value),
        Cell(c.verdict, needed, VERDICTS.index(c.verdict), MARK_OF[c.verdict], "text"),
    )  # fmt: skip


def _score_cells(s: Score) -> tuple[Cell, ...]:
    verdict = Cell(_NOT_COMPARED, "no single questions to pair", len(VERDICTS), MARK_OF["no signal"], "text")
    return _text(s.task), _text(s.metric), _count(s.n), Cell(DASH), _score(s), Cell(DASH), verdict


def _text(text: str, kind: str = "text") -> Cell:
    return Cell(text, sort=text, kind=kind)


def _count(n: int) -> Cell:
    return Cell(f"{n:,}", sort=n)


def _score(s: Score) -> Cell:
    is_share = s.higher_is_better and 0 <= s.result.low <= s.result.high <= 1
    value, low, high = (percent(x) if is_share else digits(x, 4) for x in (s.result.value, s.result.low, s.result.high))
    return Cell(value, f"{low} to {high}", s.result.value)


# ---- how numbers of a comparison are written ---------------------------------------------------------


def is_right_or_wrong(c: Comparison) -> bool:
    """Whether its values are shares of right answers, and its difference is told in points."""
    return c.mcnemar_p is not None


def value_text(c: Comparison, value: float) -> str:
    """A value of this metric."""
    return percent(value) if is_right_or_wrong(c) else digits(value, 4)


def delta_unit(c: Comparison) -> str:
    """What follows a difference of this metric."""
    return " %" if is_perplexity(c.metric) and not is_right_or_wrong(c) else ""


def delta_text(c: Comparison, delta: float) -> str:
    """A difference of this metric, or an end of its interval."""
    if is_right_or_wrong(c):
        return signed(100 * delta, 1)
    if is_perplexity(c.metric):
        return signed(100 * delta, change_places(c.delta.value))
    largest = max(abs(c.delta.low), abs(c.delta.high), 1e-9)
    return signed(delta, max(0, 1 - math.floor(math.log10(largest))))


# ---- which of them the plots show --------------------------------------------------------------------
