"""Decides which steps of a plan run at the same time, runs them in threads, and times them.

One thread decides and records; the others run one stage each. A stage that measures always runs alone: waiting threads
of llama.cpp keep their core busy, and other work would change the measured speed. Where each stage has a machine for
itself, any of them may run at the same time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from itertools import groupby
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from quantyard.engines.capacity import Capacity
from quantyard.plan.steps import Step
from quantyard.records import dataclass

# To let a stage run at the same time as others: add its name. Never add one whose result depends on speed.
CONCURRENT_STAGES: Final = ("quantize", "verify")
_MEMORY_SHARE: Final = 0.5  # share of the memory for the files of all concurrent steps
_STOP_STEP_S: Final = 0.1
T = TypeVar("T")


@dataclass(frozen=True)
class Concurrency:
    """How many steps may run at the same time, and how much memory their files may take together."""

    stages: int
    memory_bytes: int
    on_nodes: bool = False  # each step has a machine for itself, and so all of its memory

    def allows(self, n_running: int, running_bytes: int, size_bytes: int) -> bool:
        """Whether one more step may run. A single step always may."""
        if n_running == 0:
            return True
        if n_running >= self.stages:
            return False
        return self.on_nodes or running_bytes + size_bytes <= self.memory_bytes


def concurrency_of(capacity: Capacity) -> Concurrency:
    """The engine's number of stages, with a share of its memory for their files; on nodes each has all of one."""
    if capacity.nodes > 1:
        return Concurrency(capacity.concurrent_stages, capacity.memory_bytes, on_nodes=True)
    return Concurrency(capacity.concurrent_stages, int(capacity.memory_bytes * _MEMORY_SHARE))


def batch_concurrent_steps(steps: Sequence[Step], *, on_nodes: bool = False) -> Iterator[tuple[Step, ...]]:
    """The plan in its order, as groups of adjacent steps that may run at the same time, and single steps; on nodes all
    are one group.
    """
    if on_nodes:
        yield tuple(steps)
        return
    for concurrent, group in groupby(steps, lambda step: step.row.name in CONCURRENT_STAGES):
        if concurrent:
            yield tuple(group)
        else:
            yield from ((step,) for step in group)


@dataclass(frozen=True)
class EndedJob(Generic[T]):
    """A finished job: what it returned, or what it raised."""

    label: str
    value: T | None
    error: BaseException | None


class StepWorkers(Generic[T]):
    """Runs jobs in threads. Leaving the context stops the running jobs and waits for them.

    Args:
        concurrency: the limit of concurrent jobs.
        stop: stops the stages that the jobs wait for; called from another thread until all jobs have ended.
    """

    def __init__(self, concurrency: Concurrency, stop: Callable[[], None]) -> None:
        self._concurrency, self._stop = concurrency, stop
        self._running: dict[str, tuple[threading.Thread, int]] = {}
        self._ended: SimpleQueue[EndedJob[T]] = SimpleQueue()
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        while any(thread.is_alive() for thread, _ in self._running.values()):
            try:
                self._stop()
                for thread, _ in self._running.values():
                    thread.join(_STOP_STEP_S)
            except KeyboardInterrupt:  # a second Ctrl-C: the jobs are already being stopped
                continue

    @property
    def is_idle(self) -> bool:
        """Whether no job runs."""
        return not self._running

    def fits(self, size_bytes: int) -> bool:
        """Whether a job of this size may start now."""
        return self._concurrency.allows(len(self._running), sum(size for _, size in self._running.values()), size_bytes)

    def start(self, label: str, size_bytes: int, job: Callable[[], T]) -> None:
        """Run a job in a thread."""
        thread = threading.Thread(target=self._run, args=(label, job), name=label, daemon=True)
        self._running[label] = (thread, size_bytes)
        thread.start()

    def wait(self) -> EndedJob[T]:
        """The next job that ends."""
        ended = self._ended.get()
        self._running.pop(ended.label)[0].join()
        return ended

    def _run(self, label: str, job: Callable[[], T]) -> None:
        try:
            value = None if self._stopping.is_set() else job()
        except BaseException as error:  # any error must reach the deciding thread
            self._ended.put(EndedJob(label, None, error))
        else:
            self._ended.put(EndedJob(label, value, None))


@dataclass
class InOrder:
    """Reports steps in the order of the plan, whichever ends first."""

    labels: list[str]
    _said: dict[str, Callable[[], None]] = field(default_factory=dict)

    def put(self, label: str, say: Callable[[], None] | None = None) -> None:
        """Set the report of this label (None: nothing); it is made once all labels before it are reported."""
        self._said[label] = say or (lambda: None)
        while self.labels and self.labels[0] in self._said:
            self._said.pop(self.labels.pop(0))()

    def rest(self) -> None:
        """Make the reports that are still waiting for others."""
        while self._said:
            label = next(label for label in self.labels if label in self._said)
            self.labels.remove(label)
            self._said.pop(label)()


class AsTheyEnd(InOrder):
    """Reports steps as they end: on many machines the first of a plan may take hours longer than the others."""

    def put(self, label: str, say: Callable[[], None] | None = None) -> None:
        """Make the report of this label."""
        del label
        if say is not None:
            say()


@dataclass(frozen=True)
class Taken:
    """The time of one stage that was not resumed: its share of the seconds, and whether others ran at the same time."""

    label: str
    key: str
    seconds: float
    concurrent: bool = False
    n_together: int = 1  # how many steps shared the run and its time
    n_questions: int = 0  # of an evaluation
    cpu: str = ""  # of the machine that ran it; "" if the stage did not report it


@dataclass
class Stopwatch:
    """The seconds of each step. Concurrent steps share the elapsed time, so that the seconds add up to the total."""

    taken_s: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    concurrent: set[str] = field(default_factory=set)  # the steps that did not run alone
    _running: list[str] = field(default_factory=list)
    _since: float = 0.0

    def begin(self, label: str) -> None:
        """Note that a step begins."""
        self._tick()
        self._running.append(label)
        self.taken_s[label] = 0.0
        if len(self._running) > 1:
            self.concurrent.update(self._running)

    def end(self, label: str) -> None:
        """Note that it ends, whether it succeeded or not."""
        self._tick()
        self._running.remove(label)

    def _tick(self) -> None:
        now = self.clock()
        for label in self._running:
            self.taken_s[label] += (now - self._since) / len(self._running)
        self._since = now
