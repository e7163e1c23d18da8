"""The card's table of files in OpenVINO."""

from __future__ import annotations

from quantyard.card.blocks import CardTable, card_table
from quantyard.card.escaping import SafeMarkdown, markdown_code
from quantyard.card.subject import CardSubject
from quantyard.metrics.openvino_figures import openvino_figures, openvino_rows


def card_openvino_table(subject: CardSubject) -> CardTable | None:
    """One row for each published file that OpenVINO runs; None where none was measured in it."""
    rows = [row for row in openvino_rows([*subject.measured.values()]) if not row.refusal]
    figures = openvino_figures(rows)
    cells = [(markdown_code(row.label), *(SafeMarkdown(figure.shown(row)) for figure in figures)) for row in rows]
    return card_table("openvino", "table of files in OpenVINO", ("file", *(figure.name for figure in figures)), cells)
