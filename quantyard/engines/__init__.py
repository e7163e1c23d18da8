"""Engines run stages; this is the protocol that each implements."""

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
    """Runs stages; `run` may be called from several threads at the same time."""

    name: str

    def capacity(self) -> Capacity:
        """The CPU, memory and GPU that a stage may use, and how many stages run at a time."""

    def identity(self, image: str) -> str | None:
        """The identity of the tools, for a stage's key; None until the image is built or the tools are set up."""

    def prepare(self, image: str, on_note: OnNote) -> None:
        """Make the tools ready: build the image, or check those of the machine. Slow once, instant afterwards."""

    def describe(self, image: str) -> dict[str, str]:
        """Versions and digests of the tools that run the stages of this image, for the manifest."""

    def converter_list(self) -> str | None:
        """The source text in which llama.cpp's converter lists its architectures; None while it is not set up."""

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run one stage until it ends.

        Raises:
            EngineError: the stage could not be started, or its process vanished.
            ResultRefused: its result is missing, invalid, or that of another stage.
            KeyboardInterrupt: after the stage was stopped and removed.
        """

    def stop(self) -> None:
        """Stop all running stages; called from another thread. Each `run` raises, or returns what its stage left."""
