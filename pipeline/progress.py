"""How a build looks while it runs: live bars on a terminal, one line per stage elsewhere. All of it on stderr."""

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

from pipeline import contract
from pipeline.contract import StageResult
from pipeline.estimate import human_bytes


class _Amount(ProgressColumn):
    """`135 MB of 269 MB, 42 MB/s`, or `12 of 272 tensors`."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        if task.total is None or not unit:
            return Text("")
        if unit != "bytes":
            return Text(f"{int(task.completed)} of {int(task.total)} {unit}")
        rate = f", {human_bytes(int(task.speed))}/s" if task.speed else ""
        return Text(f"{human_bytes(int(task.completed))} of {human_bytes(int(task.total))}{rate}")


class LiveReporter:
    """Bars: one for the stages, one for the stage that runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<18}"), BarColumn(bar_width=28), _Amount(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
        )
        self._stages: TaskID | None = None
        self._stage: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, label: str, number: int, of: int) -> None:
        """Show the step's bar, pulsing until its first progress."""
        if self._stages is None:
            self._stages = self._bars.add_task("stages", total=of, unit="stages")
        self._bars.update(self._stages, completed=number - 1)
        self._stage = self._bars.add_task(label, total=None, unit="")

    def progress(self, progress: contract.Progress) -> None:
        """Move the step's bar."""
        if self._stage is not None:
            self._bars.update(self._stage, completed=progress.done, total=progress.total, unit=progress.unit)

    def end(self, label: str, result: StageResult) -> None:
        """Replace the step's bar by a line that stays."""
        if self._stage is not None:
            self._bars.remove_task(self._stage)
        if self._stages is not None:
            self._bars.advance(self._stages)
        self.note(ending(label, result))

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, markup=False, highlight=False)


class LineReporter:
    """One line when a stage has ended, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def begin(self, label: str, number: int, of: int) -> None:
        """Nothing: the stage's one line comes when it has ended."""

    def progress(self, progress: contract.Progress) -> None:
        """Nothing, likewise."""

    def end(self, label: str, result: StageResult) -> None:
        """The stage's line."""
        self.note(ending(label, result))

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def ending(label: str, result: StageResult) -> str:
    """The line a finished stage leaves: `[convert] 271 MB in 10.2 s`. What was let pass is said here too."""
    size_bytes = sum(f.size_bytes for f in result.outputs)
    did = human_bytes(size_bytes) if size_bytes else "passed"
    if "probes" in result.facts and "chats" in result.facts:
        did += f" ({result.facts['probes']} probes, {result.facts['chats']} conversations)"
    allowed = result.facts.get("mismatches_allowed")
    let_pass = [f"  allowed: {text}" for text in allowed] if isinstance(allowed, list) else []
    return "\n".join([f"[{label}] {did} in {result.duration_s:.1f} s", *let_pass])
