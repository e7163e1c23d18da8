"""The table of `quantyard config`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from quantyard.cli.settings import Setting


def terminal_config(rows: Sequence[tuple[Setting, str, str]]) -> Table:
    """One row per setting; defaults are dimmed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("setting", "value", "from"):
        table.add_column(head, overflow="fold")
    for setting, value, source in rows:
        table.add_row(setting.name, Text(value), Text(source), style="dim" if source == "default" else "")
    return table
