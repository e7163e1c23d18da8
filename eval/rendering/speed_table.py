"""The section of `report.md` on speed and energy."""

from __future__ import annotations

from typing import Final

from eval.rendering.markdown_table import markdown_table
from quantyard.formatting.numbers import DASH
from quantyard.metrics.speed_tests import SPEED_HEAD, energy_sentence, has_more_than_usual, speed_rows
from quantyard.protocol.measurements import EvalReport

_HOW: Final = (
    "Tests in llama-bench's terms: *pp* reads so many tokens of a prompt, *tg* generates them, *@ d* behind so many "
    "tokens of context. Means of the repeats with Student's 95 % interval; beside the baseline, both by turns."
)


def markdown_speed_section(report: EvalReport) -> str:
    """One row for each file and test, where there are more than the two of the table of files."""
    rows = speed_rows(report.measurements)
    energy = energy_sentence(report.measurements)
    if not rows or not has_more_than_usual(rows):
        return f"## Speed\n\n{energy}" if energy else ""
    cells = [(row.label, *row.cells) for row in rows]
    head = ("file", *SPEED_HEAD)
    keep = [i for i in range(len(head)) if i < 2 or any(row[i] != DASH for row in cells)]
    table = markdown_table([head[i] for i in keep], ([row[i] for i in keep] for row in cells), 2)
    return f"## Speed\n\n{_HOW} {energy}\n\n{table}"
