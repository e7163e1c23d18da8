"""The card's table of behaviours."""

from __future__ import annotations

from quantyard.card.blocks import CardTable, card_table
from quantyard.card.escaping import SafeMarkdown, markdown_code
from quantyard.card.subject import CardSubject
from quantyard.metrics.behaviour_figures import BEHAVIOUR_FIGURES, behaviour_rows


def card_behaviours_table(subject: CardSubject) -> CardTable | None:
    """One row for each kind of scenario and file, the baseline first; None where none were asked."""
    base = subject.baseline
    measured = [m for m in subject.measured.values() if m is not base]
    rows = [
        (SafeMarkdown(f"{markdown_code(row.label)}, {row.title}"), *(SafeMarkdown(cell) for cell in row.cells))
        for row in behaviour_rows([base, *measured] if base else measured)
    ]
    head = ("file", *(figure.name for figure in BEHAVIOUR_FIGURES))
    return card_table("behaviours", "behaviour table", head, rows, words=("verdict",))
