"""The types of the KV cache on the terminal."""

from __future__ import annotations

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.cli.render.tables import FittedTable
from quantyard.metrics.cache_figures import cache_figures, cache_rows
from quantyard.protocol.measurements import EvalReport


def terminal_cache_types(report: EvalReport) -> FittedTable | None:
    """One row for each file and type of the KV cache; None where none was measured."""
    rows = cache_rows(report.measurements)
    if not rows:
        return None
    figures, refused = cache_figures(rows), any(row.note for row in rows)
    names = ["file", "cache", *(figure.name for figure in figures), *(["note"] if refused else [])]
    table = FittedTable(names, left=2, heads=2, words=("note",))
    for row in rows:
        figured = (figure.shown(row.result) for figure in figures)
        table.add_row(escape_rich_markup(row.label), row.result.type, *figured, *([row.note] if refused else []))
    return table
