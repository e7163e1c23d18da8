"""Facts for a terminal in two columns: name and text."""

from __future__ import annotations

from collections.abc import Sequence


def format_columns(facts: Sequence[tuple[str, str]]) -> str:
    """Names on the left, each only on the first line of its run."""
    lines, before = [], ""
    for name, text in facts:
        shown = f"{name}  " if name != before else ""
        lines.append(f"[bold]{shown:<13}[/]{text}")
        before = name
    return "\n".join(lines)
