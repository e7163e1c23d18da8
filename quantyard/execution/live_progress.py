"""Shows the progress of a build on a terminal: live bars on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from quantyard.execution.stage_lines import stage_end_lines
from quantyard.formatting.numbers import (
    format_bytes,
    format_digits,
)
from quantyard.formatting.printable import printable_line
from quantyard.protocol.base import Progress as StageProgress
from quantyard.protocol.base import StageResult

_PACED = ("questions", "chunks", "repeats")  # shown with their number per second


class _Amount(ProgressColumn):
    """`135 MB of 269 MB, 42 MB/s`, `12 of 272 tensors`, or `320 of 640 questions, 41.3/s`."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        if task.total is None or not unit:
            return Text("")
        if unit != "bytes":
            pace = f", {format_digits(task.speed)}/s" if task.speed and unit in _PACED else ""
            return Text(f"{int(task.completed)} of {int(task.total)} {unit}{pace}")
        rate = f", {format_bytes(int(task.speed))}/s" if task.speed else ""
        return Text(f"{format_bytes(int(task.completed))} of {format_bytes(int(task.total))}{rate}")


class LiveReporter:
    """Shows one bar for all stages, and one for each running stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<20}", markup=False), BarColumn(bar_width=28), _Amount(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
        )
        self._stages: TaskID | None = None
        self._running: dict[str, TaskID] = {}  # by label

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, label: str, number: int, of: int) -> None:
        """Show the step's bar, pulsing until its first progress."""
        if self._stages is None:
            self._stages = self._bars.add_task("stages", total=of, unit="stages")
        self._bars.update(self._stages, completed=max(0, number - 1 - len(self._running)))
        self._running[label] = self._bars.add_task(printable_line(label), total=None, unit="")

    def progress(self, label: str, progress: StageProgress) -> None:
        """Move the step's bar."""
        if (bar := self._running.get(label)) is not None:
            self._bars.update(bar, completed=progress.done, total=progress.total, unit=progress.unit)

    def end(self, label: str, result: StageResult) -> None:
        """Replace the step's bar with a line that stays."""
        self._remove(label)
        for line in stage_end_lines(label, result):
            self.note(line)

    def fail(self, label: str, text: str) -> None:
        """Replace the step's bar with the failure."""
        self._remove(label)
        self.note(text)

    def _remove(self, label: str) -> None:
        if (bar := self._running.pop(label, None)) is not None:
            self._bars.remove_task(bar)
        if self._stages is not None:
            self._bars.advance(self._stages)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(printable_line(text), markup=False, highlight=False)
