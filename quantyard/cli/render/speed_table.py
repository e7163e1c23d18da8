"""The tests of speed on the terminal."""

from __future__ import annotations

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.cli.render.tables import FittedTable
from quantyard.formatting.numbers import DASH
from quantyard.metrics.speed_tests import SPEED_HEAD, has_more_than_usual, speed_rows
from quantyard.protocol.measurements import EvalReport


def terminal_speed_tests(report: EvalReport) -> FittedTable | None:
    """One row for each file and test; None where the table of files says it all."""
    rows = speed_rows(report.measurements)
    if not rows or not has_more_than_usual(rows):
        return None
    cells = [(escape_rich_markup(row.label), *row.cells) for row in rows]
    head = ("file", *SPEED_HEAD)
    keep = [i for i in range(len(head)) if i < 2 or any(row[i] != DASH for row in cells)]
    table = FittedTable([head[i] for i in keep], left=2, heads=2)
    for row in cells:
        table.add_row(*(row[i] for i in keep))
    return table
