"""The table of what each file lost by itself and what this backend adds, below the table of files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.divergence_parts import perplexity_part
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable

_KLD, _PPL = "Mean KLD", "ΔPPL"  # groups
_COLUMNS: Final = (
    PageColumn("File", "quantization type of the file", "name"),
    PageColumn("Tokens", "the first of the text, which were read again with weights as float32"),
    PageColumn("Of the file", "lost by the file: the weights of both files as float32, nats per token", group=_KLD),
    PageColumn("Backend", "added by this backend: the rest over the same tokens, nats per token", group=_KLD),
    PageColumn("ΔPPL of the file", "change of perplexity lost by the file, over the same tokens", group=_PPL),
    PageColumn("ΔPPL of the backend", "change of perplexity added by this backend, over the same tokens", group=_PPL),
)  # fmt: skip


def page_parts_table(files: Sequence[PageFile]) -> PageTable:
    """One row for each file of which both parts are known."""
    rows = tuple(_page_parts_row(s, s.divergence) for s in files if s.divergence and s.divergence.parts)
    return PageTable("parts", "Lost by the file, added by this backend", _COLUMNS, rows)


def _page_parts_row(s: PageFile, found: Divergence) -> PageRow:
    parts = found.parts
    assert parts is not None, "the caller looked"
    return PageRow(s.number, (
        PageCell(s.label, sort=s.label, kind="name"),
        PageCell(numbers.format_count(parts.n_tokens), sort=parts.n_tokens),
        _page_kld_part_cell(parts.of_file), _page_added_cell(parts.of_backend),
        _page_ppl_part_cell(perplexity_part(found, "of_file")),
        _page_ppl_part_cell(perplexity_part(found, "of_backend")),
    ))  # fmt: skip


def _page_kld_part_cell(part: Estimate) -> PageCell:
    written = numbers.format_kld_interval(estimate_interval(part))
    return PageCell(written.value, written.ends, part.value)


def _page_added_cell(part: Estimate) -> PageCell:
    """With its sign: a backend may also bring a file closer."""
    written = numbers.format_delta_interval(estimate_interval(part), "own unit")
    return PageCell(written.value, written.ends, part.value)


def _page_ppl_part_cell(change: Interval | None) -> PageCell:
    if change is None:
        return PageCell(DASH)
    written = numbers.format_change_interval(change)
    return PageCell(written.value, written.ends, change.value)
