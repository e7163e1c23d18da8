"""The section of `report.md` on the files in OpenVINO."""

from __future__ import annotations

from eval.rendering.markdown_table import markdown_table
from quantyard.metrics.openvino_figures import openvino_figures, openvino_note, openvino_rows, openvino_sentences
from quantyard.protocol.measurements import EvalReport


def markdown_openvino_section(report: EvalReport) -> str:
    """One row for each file, and why OpenVINO does not run the others; "" where none was tried."""
    rows = openvino_rows(report.measurements)
    if not rows:
        return ""
    figures = openvino_figures(rows)
    cells = ([row.label, *(figure.shown(row) for figure in figures)] for row in rows if not row.refusal)
    table = markdown_table(("file", *(figure.name for figure in figures)), cells, 1) if figures else ""
    refused = "\n".join(f"- {row.label}: {openvino_note(row)} (`{row.refusal}`)" for row in rows if row.refusal)
    return "\n\n".join(filter(None, ["## OpenVINO", " ".join(openvino_sentences(rows)), table, refused]))
