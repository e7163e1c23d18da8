"""Escapes foreign text for lines with rich's markup (`[bold]…[/]`)."""

from __future__ import annotations

from rich.markup import escape as _escape

from quantyard.formatting.printable import printable_line


def escape_rich_markup(text: str) -> str:
    """The text with markup escaped, on one line. Required for every text that is not ours."""
    return _escape(printable_line(text))
