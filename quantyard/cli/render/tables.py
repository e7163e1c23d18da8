"""Tables that lose nothing on a narrow terminal: where the columns do not fit, each row becomes a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from quantyard.formatting.numbers import DASH

_GAP = 2  # between columns
_LEAST_TEXT = 24  # width of a last column whose text goes on below
_UNCUT = 10_000  # width of a terminal that cuts nothing
_BETWEEN = " · "  # between the figures of a row that became lines


@dataclass
class FittedTable:
    """A table without lines; all columns but the first `left` and those of `words` hold numbers.

    Cells have rich's markup. Text in the last column may go on below. Where a row becomes lines, its first cells are
    the head, a figure is told with its column's name, text alone, and what was not measured not at all.
    """

    columns: Sequence[str]
    left: int = 1
    heads: int = 1  # cells of a row that name it
    words: Sequence[str] = ()  # further columns of text
    rows: list[Sequence[str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row, a cell for each column."""
        self.rows.append(cells)
        self.styles.append(style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or where it is too wide the lines."""
        table = self._table()
        width, room = console.measure(table, options=options.update_width(_UNCUT)).maximum, options.max_width
        if width > room and self.columns[-1] in self.words:
            last = table.columns[-1]
            width -= max(map(_render_cell_width, last.cells)) - _LEAST_TEXT
            last.no_wrap = False
        if width <= room:
            yield table
        else:
            yield from self._lines(options.max_width)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for number, column in enumerate(self.columns):
            is_text = number < self.left or column in self.words
            table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
        for cells, style in zip(self.rows, self.styles, strict=True):
            table.add_row(*cells, style=style)
        return table

    def _lines(self, width: int) -> Iterator[Text]:
        for cells, style in zip(self.rows, self.styles, strict=True):
            head = Text.from_markup("  ".join(cell for cell in cells[: self.heads] if cell), style="bold")
            yield _render_unbroken_line(head)
            figures = zip(self.columns[self.heads :], cells[self.heads :], strict=True)
            known = ((name, cell) for name, cell in figures if cell not in ("", DASH))
            shown = (cell if name in self.words else f"{name} {cell}" for name, cell in known)
            told = (Text.from_markup(text, style=style) for text in shown)
            yield from (_render_unbroken_line(line) for line in _render_figures_joined(told, width))


def _render_cell_width(cell: object) -> int:
    return Text.from_markup(str(cell)).cell_len


def _render_figures_joined(figures: Iterable[Text], width: int) -> Iterator[Text]:
    """As many figures on a line as fit, two blanks in."""
    line = Text("  ")
    for figure in figures:
        if line.plain.strip() and cell_len(line.plain) + len(_BETWEEN) + cell_len(figure.plain) > width:
            yield line
            line = Text("  ")
        line = line.append(_BETWEEN if line.plain.strip() else "").append_text(figure)
    if line.plain.strip():
        yield line


def _render_unbroken_line(line: Text) -> Text:
    """A line that is cut nowhere: what is longer than the terminal goes on below."""
    line.no_wrap, line.overflow = False, "fold"
    return line
