"""A reporter of stages that prints a line when each has ended."""

from __future__ import annotations

from abc import ABC, abstractmethod

from quantyard.protocol.base import Progress, StageResult


class StageLineReporter(ABC):
    """Reports one line when a stage has ended, and nothing before. A subclass decides where lines go."""

    def begin(self, label: str, number: int, of: int) -> None:
        """Report nothing."""
        del label, number, of

    def progress(self, label: str, progress: Progress) -> None:
        """Report nothing."""
        del label, progress

    def end(self, label: str, result: StageResult) -> None:
        """Report the stage's line."""
        from quantyard.execution.stage_lines import stage_end_lines  # imported late: it needs the facts of every stage

        for line in stage_end_lines(label, result):
            self.note(line)

    def fail(self, label: str, text: str) -> None:
        """Report the failure; the other stages continue."""
        del label  # the text names it
        self.note(text)

    @abstractmethod
    def note(self, text: str) -> None:
        """One line."""
