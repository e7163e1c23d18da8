"""What can run a stage: the protocol that every engine follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from quantyard.engines.capacity import Capacity
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import Progress, StageResult
from quantyard.store.artifact import Artifact, Workspace

OnProgress = Callable[[Progress], None]
OnNote = Callable[[str], None]


class Engine(Protocol):
    """Runs stages, several at a time if asked to from several threads."""

    name: str

    def capacity(self) -> Capacity:
        """The CPU, memory and GPU that a stage may use, and how many stages run at a time."""

    def identity(self, image: str) -> str | None:
        """What the tools are, for a stage's key; None while that cannot be known (an image not built yet)."""

    def prepare(self, image: str, on_note: OnNote) -> None:
        """Make the tools ready: build the image, or check the host's own. May take minutes; repeats are instant."""

    def describe(self, image: str) -> dict[str, str]:
        """For the manifest: versions and digests of what runs the stages of this image."""

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run one stage to its end.

        Raises:
            EngineError: the stage could not be started, or its process vanished.
            ResultRefused: its answer is none, or not its own.
            KeyboardInterrupt: passed on, after the stage was stopped and removed.
        """

    def stop(self) -> None:
        """Stop every stage that runs now, from another thread; its `run` raises, or returns what the stage left."""
