"""The section of `report.md` on the types of the KV cache."""

from __future__ import annotations

from collections.abc import Iterator

from eval.rendering.markdown_table import markdown_table
from quantyard.formatting.numbers import DASH, format_count, format_kld
from quantyard.metrics.cache_figures import CacheRow, cache_figures, cache_rows, cache_sentences
from quantyard.protocol.measurements import EvalReport


def markdown_cache_section(report: EvalReport) -> str:
    """One row for each file and type, and the divergence by context; "" where no type was measured."""
    rows = cache_rows(report.measurements)
    if not rows:
        return ""
    figures = cache_figures(rows)
    table = markdown_table(
        ("file", "cache", *(figure.name for figure in figures)),
        ([row.label, row.result.type, *(figure.shown(row.result) for figure in figures)] for row in rows), 2,
    )  # fmt: skip
    return "\n\n".join(["## KV cache", " ".join(cache_sentences(rows)), table, *_markdown_cache_positions(rows),
                        *_markdown_cache_refusals(rows)])  # fmt: skip


def _markdown_cache_positions(rows: list[CacheRow]) -> Iterator[str]:
    """The divergence of each type by tokens of context, where there are several ranges."""
    deepest = max((row.result.by_position for row in rows), key=len)
    if len(deepest) < 2:
        return
    head = ("file", "cache", *(f"{format_count(part.first)} to {format_count(part.last)}" for part in deepest))
    cells = (
        [row.label, row.result.type, *(format_kld(part.mean_kld.value) for part in row.result.by_position)]
        for row in rows if row.result.by_position
    )  # fmt: skip
    whole = ([*row, *[DASH] * (len(head) - len(row))] for row in cells)
    yield f"KLD from f16 by the number of tokens in the cache:\n\n{markdown_table(head, whole, 2)}"


def _markdown_cache_refusals(rows: list[CacheRow]) -> Iterator[str]:
    lines = [f"- {row.label}, {row.result.type}: {row.note} (`{row.result.refusal}`)" for row in rows if row.note]
    if lines:
        yield "\n".join(lines)
