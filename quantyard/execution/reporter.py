"""What a run tells about its steps while it lasts."""

from __future__ import annotations

from typing import Protocol

from quantyard.protocol.base import Progress, StageResult


class StepReporter(Protocol):
    """Lines or bars; see progress.py. Several steps may run at the same time."""

    def begin(self, label: str, number: int, of: int) -> None:
        """A step starts."""

    def progress(self, label: str, progress: Progress) -> None:
        """A step has made progress. May be called from any thread."""

    def end(self, label: str, result: StageResult) -> None:
        """A step has finished."""

    def fail(self, label: str, text: str) -> None:
        """A step has failed, and the others go on."""

    def note(self, text: str) -> None:
        """A line for the user."""
