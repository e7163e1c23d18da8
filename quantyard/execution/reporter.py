"""The interface through which a run reports its steps."""

from __future__ import annotations

from typing import Protocol

from quantyard.protocol.base import Progress, StageResult


class StepReporter(Protocol):
    """Receives the events of a run, several steps at the same time; see progress.py and live_progress.py."""

    def begin(self, label: str, number: int, of: int) -> None:
        """A step starts."""

    def progress(self, label: str, progress: Progress) -> None:
        """A step has made progress. May be called from any thread."""

    def end(self, label: str, result: StageResult) -> None:
        """A step has finished."""

    def fail(self, label: str, text: str) -> None:
        """A step has failed, and the others continue."""

    def note(self, text: str) -> None:
        """A line for the user."""
