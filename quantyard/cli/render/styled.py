"""Foreign text between the marks of rich (`[bold]…[/]`): shown as it is, on its line, and never read as a mark."""

from __future__ import annotations

from rich.markup import escape as _escape

from quantyard.formatting.printable import printable_line


def escape_rich_markup(text: str) -> str:
    """The text for a line with marks. Everything that is not our own word goes through here."""
    return _escape(printable_line(text))
