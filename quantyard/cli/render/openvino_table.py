"""The files in OpenVINO on the terminal."""

from __future__ import annotations

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.cli.render.tables import FittedTable
from quantyard.metrics.openvino_figures import openvino_figures, openvino_note, openvino_rows
from quantyard.protocol.measurements import EvalReport


def terminal_openvino_files(report: EvalReport) -> FittedTable | None:
    """One row for each file; None where none was tried in OpenVINO."""
    rows = openvino_rows(report.measurements)
    if not rows:
        return None
    figures, refused = openvino_figures(rows), any(row.refusal for row in rows)
    names = ["file", *(figure.name for figure in figures), *(["note"] if refused else [])]
    table = FittedTable(names, left=1, heads=1, words=("note",))
    for row in rows:
        notes = [openvino_note(row)] if refused else []
        table.add_row(escape_rich_markup(row.label), *(figure.shown(row) for figure in figures), *notes)
    return table
