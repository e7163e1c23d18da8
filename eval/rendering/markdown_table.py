"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are text and the others numbers."""
    rule = [":---" if i < left else "---:" for i in range(len(head))]
    cells = ([cell.replace("|", r"\|") for cell in row] for row in (head, rule, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
