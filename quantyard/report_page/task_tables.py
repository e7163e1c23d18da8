"""The task tables of the comparison page: one row per file, task and metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.kinds import score_metric_kind
from quantyard.metrics.plots.marks import MARK_OF, VERDICTS
from quantyard.metrics.verdicts import open_verdict_note
from quantyard.protocol.measurements import Comparison, EvalReport, Score
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable

_NOT_COMPARED: Final = "not compared"


def page_tasks_table(report: EvalReport, files: Sequence[PageFile]) -> PageTable:
    """Every comparison with the baseline, and the scores that could not be compared."""
    columns = (
        PageColumn("File", "quantization type", "name"),
        PageColumn("Task", "of lm-evaluation-harness, or the suite's own", "text"),
        PageColumn("Metric", "with lm-eval's filter, if any", "text"), PageColumn("n", "questions"),
        PageColumn(report.baseline, "the baseline's value"), PageColumn("Value", "the file's value"),
        PageColumn("Δ", "difference in percentage points (perplexities: in %), with the 95 % interval"),
        PageColumn("Verdict", "the conclusion from the interval", "text"),
    )  # fmt: skip
    rows = tuple(row for s in files for row in _page_task_rows(s))
    return PageTable("tasks", "Every task beside the baseline", columns, rows)


def _page_task_rows(s: PageFile) -> Iterator[PageRow]:
    if s.found is None:
        return
    compared = {(c.task, c.metric) for c in s.found.comparisons}
    for c in s.found.comparisons:
        yield PageRow(s.number, (_page_text_cell(s.label, "name"), *_page_comparison_cells(c)), c.verdict)
    for score in s.found.scores:
        if not s.is_baseline and (score.task, score.metric) not in compared:
            yield PageRow(s.number, (_page_text_cell(s.label, "name"), *_page_score_cells(score)), _NOT_COMPARED)


def page_scores_table(report: EvalReport, files: Sequence[PageFile]) -> PageTable:
    """The baseline's scores, if no other file was measured."""
    columns = (
        PageColumn("File", "", "name"), PageColumn("Task", "", "text"), PageColumn("Metric", "", "text"),
        PageColumn("n", "questions"),
        PageColumn("Value", "with its 95 % interval"),
    )  # fmt: skip
    baseline = next(s for s in files if s.is_baseline)
    rows = tuple(
        PageRow(baseline.number,
            (_page_text_cell(baseline.label, "name"), _page_text_cell(s.task), _page_text_cell(s.metric),
             _page_count_cell(s.n), _page_score_cell(s)))
        for s in report.measurements[0].scores
    )  # fmt: skip
    return PageTable("tasks", "Scores of the baseline", columns, rows)


def _page_comparison_cells(c: Comparison) -> tuple[PageCell, ...]:
    kind = score_metric_kind(c)
    delta = numbers.format_delta_interval(c.delta, kind)
    return (
        _page_text_cell(c.task), _page_text_cell(c.metric), _page_count_cell(c.n),
        PageCell(numbers.format_metric_value(c.baseline, kind), sort=c.baseline),
        PageCell(numbers.format_metric_value(c.value, kind), sort=c.value),
        PageCell(delta.value, delta.ends, c.delta.value),
        PageCell(c.verdict, open_verdict_note(c), VERDICTS.index(c.verdict), MARK_OF[c.verdict], "text"),
    )  # fmt: skip


def _page_score_cells(s: Score) -> tuple[PageCell, ...]:
    verdict = PageCell(_NOT_COMPARED, "no single questions to pair", len(VERDICTS), MARK_OF["no signal"], "text")
    return (
        _page_text_cell(s.task), _page_text_cell(s.metric), _page_count_cell(s.n),
        PageCell(DASH), _page_score_cell(s), PageCell(DASH), verdict,
    )  # fmt: skip


def _page_text_cell(text: str, kind: str = "text") -> PageCell:
    return PageCell(text, sort=text, kind=kind)


def _page_count_cell(n: int) -> PageCell:
    return PageCell(numbers.format_count(n), sort=n)


def _page_score_cell(s: Score) -> PageCell:
    written = numbers.format_score_interval(s.result, score_metric_kind(s))
    return PageCell(written.value, written.ends, s.result.value)
