"""What can run a stage: the protocol, and the choice of engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import Progress, StageResult
from quantyard.store.artifacts import Artifact, Workspace

EngineName = Literal["auto", "docker", "local"]
OnProgress = Callable[[Progress], None]
OnNote = Callable[[str], None]


@dataclass(frozen=True)
class Surroundings:
    """What the machine and the user give every stage: decided at the edge, the same for both engines."""

    repo_dir: Path  # where the stage packages are
    hf_token: str | None = field(default=None, repr=False)
    # HTTPS_PROXY, NO_PROXY …, for stages with a network
    proxies: Mapping[str, str] | None = field(default=None, repr=False)
    ca_bundle: Path | None = None  # system certificates plus EXTRA_CA, in one PEM file
    memory_bytes: int | None = None  # None: all of the machine but a reserve


class Engine(Protocol):
    """Runs stages, several at a time if asked to from several threads."""

    name: str

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
