"""The table of files in OpenVINO on the comparison page."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.metrics.openvino_figures import (
    OpenVinoFigure,
    openvino_figures,
    openvino_note,
    openvino_rows,
    openvino_sentences,
)
from quantyard.protocol.openvino_results import OpenVinoMeasurement
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable


def page_openvino_table(files: Sequence[PageFile]) -> PageTable:
    """One row for each file that was tried."""
    rows, numbers = _page_openvino_rows(files), {s.label: s.number for s in files}
    figures = openvino_figures(rows)
    columns = (
        PageColumn("File", "quantization type of the file", "name"),
        *(PageColumn(figure.name, figure.help) for figure in figures),
    )
    return PageTable("openvino", "Files in OpenVINO", columns, tuple(
        PageRow(numbers[row.label], (
            PageCell(row.label, row.refusal, row.label, kind="name"),
            *(_page_openvino_cell(figure, row) for figure in figures),
        )) for row in rows
    ))  # fmt: skip


def page_openvino_sentence(files: Sequence[PageFile]) -> str:
    """How the files were measured, and why those are not that OpenVINO does not run."""
    rows = _page_openvino_rows(files)
    refused = (f"{row.label}: {openvino_note(row)}." for row in rows if row.refusal)
    return " ".join([*openvino_sentences(rows), *refused])


def _page_openvino_rows(files: Sequence[PageFile]) -> list[OpenVinoMeasurement]:
    return openvino_rows([s.found for s in files if s.found])


def _page_openvino_cell(figure: OpenVinoFigure, row: OpenVinoMeasurement) -> PageCell:
    return PageCell(figure.shown(row), figure.interval(row), figure.value(row))
