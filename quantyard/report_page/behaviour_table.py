"""The table of behaviours of the comparison page: one row for each kind of scenario and file."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.metrics.behaviour_figures import BEHAVIOUR_FIGURES, BehaviourCell, BehaviourFigures, behaviour_rows
from quantyard.metrics.plots.marks import MARK_OF, NO_MARK, VERDICTS
from quantyard.protocol.measurements import EvalReport
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable


def page_behaviours_table(report: EvalReport, files: Sequence[PageFile]) -> PageTable:
    """Without rows where no behaviour was measured."""
    columns = (
        PageColumn("File", "quantization type", "name"), PageColumn("Behaviour", "kind of scenario", "text"),
        *(PageColumn(_page_heading(figure.name), figure.help, "text" if figure.is_text else "number")
          for figure in BEHAVIOUR_FIGURES),
    )  # fmt: skip
    numbers = {s.label: s.number for s in files}
    rows = (_page_behaviour_row(numbers[row.label], row) for row in behaviour_rows(report.measurements))
    return PageTable("behaviours", "Every behaviour beside the baseline", columns, tuple(rows))


def _page_heading(name: str) -> str:
    return name[0].upper() + name[1:]


def _page_behaviour_row(number: int, row: BehaviourFigures) -> PageRow:
    cells = [_page_behaviour_cell(row, figure.is_text, cell)
             for figure, cell in zip(BEHAVIOUR_FIGURES, row.cells, strict=True)]  # fmt: skip
    names = (PageCell(row.label, sort=row.label, kind="name"), PageCell(row.title, sort=row.title, kind="text"))
    return PageRow(number, (*names, *cells), row.verdict or "")


def _page_behaviour_cell(row: BehaviourFigures, is_text: bool, cell: BehaviourCell) -> PageCell:
    if not is_text:
        return PageCell(cell.text, cell.note, cell.value)
    verdict = row.verdict
    mark = MARK_OF[verdict] if verdict else NO_MARK
    return PageCell(cell.text, cell.note, VERDICTS.index(verdict) if verdict else None, mark, "text")
