"""Shows the progress of a build in logs and pipes: one line for each stage, on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console

from quantyard.execution.stage_lines import StageLineReporter
from quantyard.formatting.printable import printable_line


class LineReporter(StageLineReporter):
    """Prints one line when a stage has ended, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(printable_line(text), markup=False, highlight=False, soft_wrap=True)
