"""The table of the noise of the packing on the comparison page."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.metrics.layout_figures import LAYOUT_COLUMNS, layout_rows
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable

_HELP = (
    "quantization type of the file", "in another packing, of all tasks", "standard deviation over packings",
    "questions with another most likely answer, with the 95 % interval of the share",
    "standard deviation over packings of the choice questions, percentage points, at most",
    "standard error over other questions, percentage points",
)  # fmt: skip


def page_layout_table(files: Sequence[PageFile]) -> PageTable:
    """One row for each file whose questions were asked again."""
    file, *others = (name[0].upper() + name[1:] for name in LAYOUT_COLUMNS)
    columns = (PageColumn(file, _HELP[0], "name"), *map(PageColumn, others, _HELP[1:]))
    rows = (row for s in files for row in _page_layout_rows(s))
    return PageTable("layout", "Layout noise", columns, tuple(rows))


def _page_layout_rows(s: PageFile) -> list[PageRow]:
    noise = s.found.layout_noise if s.found else None
    if s.found is None or noise is None:
        return []
    accuracy = noise.accuracy
    values = (
        noise.n_questions, noise.sd_nats, noise.flips / max(1, noise.n_questions),
        accuracy.layout_sd if accuracy else None, accuracy.sample_stderr if accuracy else None,
    )  # fmt: skip
    (label, *texts), = layout_rows([s.found])
    cells = (_page_layout_cell(text, value) for text, value in zip(texts, values, strict=True))
    return [PageRow(s.number, (PageCell(label, sort=label, kind="name"), *cells))]


def _page_layout_cell(text: str, value: float | None) -> PageCell:
    """What stands in brackets is the small print."""
    shown, _, note = text.partition(" (")
    return PageCell(shown, note.removesuffix(")"), value)
