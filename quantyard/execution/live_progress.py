"""Shows the progress of a build on a terminal: live lines with bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from quantyard.execution.progress_text import RunningSteps
from quantyard.execution.stage_lines import stage_end_lines
from quantyard.formatting.printable import printable_line
from quantyard.protocol.base import Progress, StageResult

_WIDE: Final = 110  # characters of a terminal with room for long bars
_BARS: Final = {True: 24, False: 8}
_MOST_LABEL: Final = 32  # characters; a longer one goes on below
_PER_SECOND: Final = 5
_CTRL_C: Final = "^C "  # what a terminal writes behind the last line; it must not begin another one


class LiveReporter:
    """Shows a line for all stages, and one or two for each running stage.

    Args:
        on_line: prints a line that stays, above the others; default: by the console itself.
        expected_s: seconds that the plan expects of each step, by label.
    """

    def __init__(
        self, console: Console, on_line: Callable[[str], None] | None = None,
        expected_s: Mapping[str, float] | None = None,
    ) -> None:
        self._console = console
        self._on_line = on_line or (lambda text: console.print(text, markup=False, highlight=False))
        self.steps = RunningSteps(expected_s or {})
        self._live = Live(
            console=console, transient=True, refresh_per_second=_PER_SECOND, get_renderable=self._renderable
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def begin(self, label: str, number: int, of: int) -> None:
        """Show the step's line, its bar pulsing until its first progress."""
        self.steps.begin(label, number, of)

    def progress(self, label: str, progress: Progress) -> None:
        """Move the step's bar."""
        self.steps.take(label, progress)

    def end(self, label: str, result: StageResult) -> None:
        """Replace the step's bar with a line that stays."""
        self.steps.end(label)
        for line in stage_end_lines(label, result):
            self.note(line)

    def fail(self, label: str, text: str) -> None:
        """Replace the step's bar with the failure."""
        self.steps.end(label)
        self.note(text)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._on_line(printable_line(text))

    def _renderable(self) -> RenderableType:
        steps, width = self.steps, _BARS[self._console.width >= _WIDE]
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(max_width=_MOST_LABEL, overflow="fold")
        table.add_column(width=width)
        table.add_column(overflow="fold")
        if steps.n_steps:
            table.add_row(Text("all"), ProgressBar(steps.n_steps, steps.n_ended, width), Text(steps.text))
        for label, step in list(steps.running.items()):
            share = step.share
            bar = ProgressBar(None if share is None else 1.0, share or 0.0, width, pulse=share is None)
            table.add_row(Text(printable_line(label)), bar, Text(step.text))
        return Constrain(table, self._console.width - len(_CTRL_C))
