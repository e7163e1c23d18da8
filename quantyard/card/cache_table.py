"""The card's table of cache types."""

from __future__ import annotations

from quantyard.card.blocks import CardTable, card_table
from quantyard.card.escaping import SafeMarkdown, markdown_code
from quantyard.card.subject import CardSubject
from quantyard.metrics.cache_figures import cache_figures, cache_rows


def card_cache_table(subject: CardSubject) -> CardTable | None:
    """One row for each published file and type of the KV cache that llama.cpp runs; None where none was measured."""
    rows = [row for row in cache_rows([*subject.measured.values()]) if not row.result.refusal]
    figures = cache_figures(rows)
    cells = [
        (markdown_code(row.label), SafeMarkdown(row.result.type),
         *(SafeMarkdown(figure.shown(row.result)) for figure in figures))
        for row in rows
    ]  # fmt: skip
    head = ("file", "cache", *(figure.name for figure in figures))
    return card_table("cache", "table of cache types", head, cells, words=("cache",))
