"""The table of cache types on the comparison page."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.metrics.cache_figures import CacheFigure, CacheRow, cache_figures, cache_rows, cache_sentences
from quantyard.protocol.cache_types import CACHE_REFUSALS
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable


def page_cache_table(files: Sequence[PageFile]) -> PageTable:
    """One row for each file and type of the KV cache."""
    rows, numbers = _page_cache_rows(files), {s.label: s.number for s in files}
    figures = cache_figures(rows)
    columns = (
        PageColumn("File", "quantization type of the file", "name"),
        PageColumn("Cache", "type of keys and values, or of keys / of values", "text"),
        *(PageColumn(figure.name, figure.help) for figure in figures),
    )
    return PageTable("cache", "Types of the KV cache", columns, tuple(
        PageRow(numbers[row.label], (
            PageCell(row.label, sort=row.label, kind="name"),
            PageCell(row.result.type, row.result.refusal, row.result.type, kind="text"),
            *(_page_cache_cell(figure, row) for figure in figures),
        )) for row in rows
    ))  # fmt: skip


def page_cache_sentence(files: Sequence[PageFile]) -> str:
    """How the types were measured, and what the reasons mean of those that cannot be run."""
    rows = _page_cache_rows(files)
    reasons = dict.fromkeys(row.result.refusal for row in rows if row.result.refusal)
    return " ".join([*cache_sentences(rows), *(f"{reason}: {CACHE_REFUSALS[reason]}." for reason in reasons)])


def _page_cache_rows(files: Sequence[PageFile]) -> list[CacheRow]:
    return cache_rows([s.found for s in files if s.found])


def _page_cache_cell(figure: CacheFigure, row: CacheRow) -> PageCell:
    return PageCell(figure.shown(row.result), figure.interval(row.result), figure.value(row.result))
