"""Runs stages as jobs of a cluster's own scheduler. Quantyard decides what is to be run, and the queue where and when.

A `BatchQueue` submits, polls and cancels; `BatchEngine` makes an engine of one and of a shared store, so that a plan
runs on a cluster as it runs on one machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from quantyard.engines.capacity import Capacity
from quantyard.protocol.node_spec import NodeSpec

LOG_TAIL_LINES: Final = 15  # of what a job wrote, shown with its error
LOG_TAIL_BYTES: Final = 16 * 1024

# How a job ended that did not end by itself: `node`: it or its processes vanished; `refused`: it can never start.
Fate = Literal["", "node", "time", "memory", "disk", "cancelled", "preempted", "refused"]


@dataclass(frozen=True)
class SubmittedJob:
    """A job in the queue; `ours` if this process submitted it, or may answer for one whose process is gone."""

    id: str
    ours: bool


@dataclass(frozen=True)
class JobStatus:
    """What the queue knows of a job."""

    state: Literal["queued", "running", "lost", "ended"]
    reason: str = ""  # why it waits, in the queue's words
    node: str = ""
    fate: Fate = ""
    exit_code: int | None = None
    hint: str = ""  # what to do about the reason


class BatchQueue(Protocol):
    """A scheduler of a cluster. Called from several threads."""

    name: str  # of the engine: ENGINE=slurm, ENGINE=kubernetes

    def capacity(self) -> Capacity:
        """What one job may use, and how many jobs may run at a time.

        Raises:
            EngineError: the queue does not answer, or has no nodes for us.
        """

    def submit(self, spec: NodeSpec, spec_name: str, avoid: Collection[str] = ()) -> SubmittedJob:
        """Have the stage in the queue once: a job of the same key that waits or runs is taken instead of a new one.

        Args:
            spec_name: of the spec in the store.
            avoid: nodes that it must not run on.

        Raises:
            EngineError: the queue refuses the job, or does not answer.
        """

    def poll(self, ids: Collection[str]) -> Mapping[str, JobStatus]:
        """The status of each job; `lost` if the queue no longer knows it.

        Raises:
            QueueSilent: the queue does not answer; jobs may go on.
        """

    def cancel(self, ids: Collection[str]) -> None:
        """End these jobs; those that have ended are left alone. Does not raise."""

    def log_tail(self, job_id: str, spec: NodeSpec) -> str:
        """The last lines that a job wrote, where this machine can read them; "" elsewhere."""
