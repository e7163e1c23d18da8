"""Shows the progress of a build in logs and pipes, on stderr: a line as a stage ends, and each minute of a long one."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console

from quantyard.execution.progress_text import Clock, RunningSteps
from quantyard.execution.stage_line_reporter import StageLineReporter
from quantyard.formatting.printable import printable_line
from quantyard.protocol.base import Progress, StageResult

_EVERY_S: Final = 60.0


class LineReporter(StageLineReporter):
    """Prints a line when a stage has ended, and of a long one each minute how far it is."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._steps = RunningSteps(clock=clock)
        self._told: dict[str, float] = {}  # label → when its last line was printed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def begin(self, label: str, number: int, of: int) -> None:
        """Print nothing yet."""
        self._steps.begin(label, number, of)
        self._told[label] = self._clock()

    def progress(self, label: str, progress: Progress) -> None:
        """Print how far the step is, at most once a minute."""
        self._steps.take(label, progress)
        step = self._steps.running.get(label)
        if step and self._clock() - self._told[label] >= _EVERY_S:
            self._told[label] = self._clock()
            self.note(f"[{label}] {step.text}")

    def end(self, label: str, result: StageResult) -> None:
        """Print the stage's line."""
        self._steps.end(label)
        super().end(label, result)

    def fail(self, label: str, text: str) -> None:
        """Print the failure; the other stages continue."""
        self._steps.end(label)
        super().fail(label, text)

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(printable_line(text), markup=False, highlight=False, soft_wrap=True)
