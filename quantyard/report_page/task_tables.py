"""The task tables of the comparison page: one row per file, task and metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.kinds import kind_of
from quantyard.protocol.measurements import Comparison, EvalReport, Score
from quantyard.report_page.marks import MARK_OF, VERDICTS
from quantyard.report_page.tables import Cell, Column, PageFile, PageTable, Row

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
    kind = kind_of(c)
    delta = numbers.delta_written(c.delta, kind)
    needed = f"{numbers.forecast_count(c.questions_needed)} would do" if c.questions_needed else ""
    return (
        _text(c.task), _text(c.metric), _count(c.n), Cell(numbers.metric_value(c.baseline, kind), sort=c.baseline),
        Cell(numbers.metric_value(c.value, kind), sort=c.value), Cell(delta.value, delta.ends, c.delta.value),
        Cell(c.verdict, needed, VERDICTS.index(c.verdict), MARK_OF[c.verdict], "text"),
    )  # fmt: skip


def _score_cells(s: Score) -> tuple[Cell, ...]:
    verdict = Cell(_NOT_COMPARED, "no single questions to pair", len(VERDICTS), MARK_OF["no signal"], "text")
    return _text(s.task), _text(s.metric), _count(s.n), Cell(DASH), _score(s), Cell(DASH), verdict


def _text(text: str, kind: str = "text") -> Cell:
    return Cell(text, sort=text, kind=kind)


def _count(n: int) -> Cell:
    return Cell(numbers.count(n), sort=n)


def _score(s: Score) -> Cell:
    written = numbers.score_written(s.result, kind_of(s))
    return Cell(written.value, written.ends, s.result.value)
