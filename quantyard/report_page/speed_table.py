"""The table of speed and energy on the comparison page."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.formatting.numbers import DASH
from quantyard.metrics.speed_tests import (
    SpeedRow,
    energy_sentence,
    has_more_than_usual,
    speed_interval_text,
    speed_rows,
)
from quantyard.report_page.tables import PageCell, PageColumn, PageFile, PageRow, PageTable

_COLUMNS = (
    PageColumn("File", "quantization type of the file", "name"),
    PageColumn("Test", "as llama-bench names it: pp reads, tg generates, @ d behind so many tokens of context", "text"),
    PageColumn("Tokens/s", "mean of the repeats, with Student's 95 % interval"),
    PageColumn("J/token", "joules for each token, by the machine's own counters"),
    PageColumn("Beside the baseline", "speed as a share of the baseline's, both by turns in one run"),
)


def page_speed_table(files: Sequence[PageFile]) -> PageTable:
    """One row for each file and test; no rows where the table of files says it all."""
    found, numbers = speed_rows([s.found for s in files if s.found]), {s.label: s.number for s in files}
    rows = [_page_speed_row(numbers[row.label], row) for row in found] if found and has_more_than_usual(found) else []
    keep = [i for i in range(len(_COLUMNS)) if i < 2 or any(row.cells[i].text != DASH for row in rows)]
    kept = tuple(PageRow(row.number, tuple(row.cells[i] for i in keep)) for row in rows)
    return PageTable("speeds", "Speed and energy of every test", tuple(_COLUMNS[i] for i in keep), kept)


def page_energy_sentence(files: Sequence[PageFile]) -> str:
    """Where the joules come from, or why there are none."""
    return energy_sentence([s.found for s in files if s.found])


def _page_speed_row(number: int, row: SpeedRow) -> PageRow:
    test, (_name, rate, _interval, joules, _joules_interval, pace) = row.test, row.cells
    return PageRow(number, (
        PageCell(row.label, sort=row.label, kind="name"), PageCell(test.name, sort=test.name, kind="text"),
        PageCell(rate, _page_ends(speed_interval_text(test.interval)), test.tokens_per_s),
        PageCell(joules, _page_ends(speed_interval_text(test.joules_interval, 2)), test.joules_per_token),
        PageCell(pace.partition(" (")[0], pace.partition(" (")[2].rstrip(")"), row.pace.value if row.pace else None),
    ))  # fmt: skip


def _page_ends(text: str) -> str:
    return "" if text == DASH else text
