"""Decides whether a stage that failed on a node is tried again, when, and with what."""

from __future__ import annotations

from dataclasses import dataclass, field

from quantyard.batch import JobStatus
from quantyard.formatting.numbers import format_duration, format_memory
from quantyard.protocol.base import ExitCode
from quantyard.protocol.node_spec import NodeEnd, NodeSpec


@dataclass(frozen=True)
class NextTry:
    """Another try: after a wait, with a spec that may ask for more, and the reason for the user."""

    spec: NodeSpec
    wait_s: float
    reason: str


@dataclass
class StageTries:
    """The tries of one stage by this process. `avoided` are nodes that it must not run on again."""

    spec: NodeSpec
    most_memory_bytes: int  # of a node
    avoided: set[str] = field(default_factory=set)
    _lost: int = 0
    _network: int = 0
    _memory: int = 0
    _disks: int = 0

    def after_end(self, end: NodeEnd) -> NextTry | None:
        """The next try after a stage ended with an error; None if it would fail again, or has failed often enough."""
        if end.result is None:
            return None
        match end.result.exit_code:
            case ExitCode.NETWORK if self._network < len(self.spec.retry.network_waits_s):
                wait_s = self.spec.retry.network_waits_s[self._network]
                self._network += 1
                why = f"the network failed on {end.node.host}; again in {format_duration(wait_s)}"
                return NextTry(self.spec, wait_s, why)
            case ExitCode.RESOURCES if end.result.error and "disk" in end.result.error.kind:
                return self._after_full_disk(end.node.host)
            case ExitCode.RESOURCES:
                return self.after_memory()
        return None

    def after_silent_end(self, end: NodeEnd) -> NextTry | None:
        """The next try after a node could not say in the store why it ended: only if the network may come back."""
        is_network = end.result is not None and end.result.exit_code is ExitCode.NETWORK
        return self.after_end(end) if is_network else None

    def after_memory(self) -> NextTry | None:
        """The next try after memory ran out: once, with more."""
        factors, memory_bytes = self.spec.retry.memory_factors, self.spec.resources.memory_bytes
        if self._memory >= len(factors) or not 0 < memory_bytes < self.most_memory_bytes:
            return None
        more = min(int(memory_bytes * factors[self._memory]), self.most_memory_bytes)
        self._memory += 1
        resources = self.spec.resources.model_copy(update={"memory_bytes": more})
        self.spec = self.spec.model_copy(update={"resources": resources})
        return NextTry(self.spec, 0.0, f"memory ran out; again with {format_memory(more)}")

    def after_lost(self, status: JobStatus) -> NextTry | None:
        """The next try after its job or its node vanished."""
        if self._lost >= self.spec.retry.lost_nodes:
            return None
        self._lost += 1
        where = f" on {status.node}" if status.node else ""
        return NextTry(self.spec, 0.0, f"the job was lost{where}; again ({self._lost} of {self.spec.retry.lost_nodes})")

    def _after_full_disk(self, host: str) -> NextTry | None:
        if self._disks >= self.spec.retry.full_disks:
            return None
        self._disks += 1
        self.avoided.add(host)
        return NextTry(self.spec, 0.0, f"the disk of {host} is full; again on another node")
