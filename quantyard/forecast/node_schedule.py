"""What a plan takes on several machines: its waves, its critical path, and the time on any number of nodes.

The schedule is that of the runner: whatever is ready starts in the plan's order as soon as a node is free, and a node
runs one step at a time. Where bandwidths are given, a step first reads its inputs from the store, and in the end writes
what it made; whoever uses the store at the same time shares its bandwidth.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from quantyard.forecast.expected_times import Forecast
from quantyard.plan.steps import BuildPlan, Origin, Step, StepOutput

_LEAST_BYTES = 1e-3  # of a transfer; less is rounding


@dataclass(frozen=True)
class NodeTask:
    """One step, as a scheduler sees it."""

    label: str
    seconds: float
    needs: tuple[str, ...] = ()
    read_bytes: float = 0.0
    written_bytes: float = 0.0


@dataclass(frozen=True)
class NodeNetwork:
    """Bytes per second of each node's link, and of the store for all together."""

    link: float = math.inf
    store: float = math.inf


@dataclass(frozen=True)
class NodeRun:
    """What a number of nodes made of the tasks."""

    nodes: int
    seconds: float
    ended_s: Mapping[str, float]
    busy_s: float  # of all nodes together, transfers included
    moved_bytes: float

    @property
    def node_use(self) -> float:
        """The share of the nodes' time in which they had a task."""
        return self.busy_s / (self.nodes * self.seconds) if self.seconds else 0.0

    def store_use(self, network: NodeNetwork) -> float:
        """The share of the store's bandwidth that was used."""
        return self.moved_bytes / (network.store * self.seconds) if self.seconds else 0.0


def plan_node_tasks(plan: BuildPlan, finished: Collection[str], time: Forecast) -> list[NodeTask]:
    """The steps that are left. One whose time is not known counts as none."""
    left = [step for step in plan.steps if step.label not in finished]
    labels = {step.label for step in left}
    return [
        NodeTask(step.label, time.steps[step.label].seconds if step.label in time.steps else 0.0, _needs(step, labels))
        for step in left
    ]


def _needs(step: Step, labels: Collection[str]) -> tuple[str, ...]:
    origins: Mapping[str, Origin] = step.inputs
    made = (origin.step for origin in origins.values() if isinstance(origin, StepOutput))
    return tuple(dict.fromkeys(label for label in made if label in labels))


def node_waves(tasks: Sequence[NodeTask]) -> list[list[str]]:
    """The labels that could run at the same time with nodes enough, wave by wave."""
    level: dict[str, int] = {}
    for task in tasks:
        level[task.label] = 1 + max((level[label] for label in task.needs), default=-1)
    return [[label for label, at in level.items() if at == wave] for wave in range(max(level.values(), default=-1) + 1)]


def critical_path(tasks: Sequence[NodeTask]) -> tuple[float, list[str]]:
    """The seconds of the longest chain of tasks, and its labels: no number of nodes is faster."""
    ends: dict[str, float] = {}
    before: dict[str, str] = {}
    for task in tasks:
        last = max(task.needs, key=ends.__getitem__, default="")
        ends[task.label] = task.seconds + ends.get(last, 0.0)
        before[task.label] = last
    label = max(ends, key=ends.__getitem__, default="")
    total, path = ends.get(label, 0.0), list[str]()
    while label:
        path.append(label)
        label = before[label]
    return total, path[::-1]


def node_counts(most: int) -> Iterator[int]:
    """1, 2, 4 … up to `most`, which is the last."""
    yield from (2**power for power in range(most.bit_length()) if 2**power < most)
    yield most


def run_on_nodes(tasks: Sequence[NodeTask], nodes: int, network: NodeNetwork | None = None) -> NodeRun:
    """Let so many nodes run the tasks."""
    return _Nodes(tasks, nodes, network or NodeNetwork()).run()


@dataclass
class _Nodes:
    """The state of one run."""

    tasks: Sequence[NodeTask]
    nodes: int
    network: NodeNetwork
    now: float = 0.0
    ended: dict[str, float] = field(default_factory=dict)
    _started: dict[int, float] = field(default_factory=dict)
    _ready: list[int] = field(default_factory=list)  # a heap of numbers of tasks
    _running: list[tuple[float, int]] = field(default_factory=list)  # a heap: when the work of a task ends
    _moving: dict[int, tuple[float, bool]] = field(default_factory=dict)  # bytes left, and whether they are written
    _busy_s: float = 0.0

    def run(self) -> NodeRun:
        """Go from event to event."""
        waits = [len(task.needs) for task in self.tasks]
        followers: dict[str, list[int]] = {}
        for number, task in enumerate(self.tasks):
            for label in task.needs:
                followers.setdefault(label, []).append(number)
        self._ready = [number for number, left in enumerate(waits) if not left]
        while self._ready or self._started:
            while self._ready and len(self._started) < self.nodes:
                self._start(heapq.heappop(self._ready))
            for number in self._next_ended():
                for follower in followers.get(self.tasks[number].label, ()):
                    waits[follower] -= 1
                    if not waits[follower]:
                        heapq.heappush(self._ready, follower)
        moved = sum(task.read_bytes + task.written_bytes for task in self.tasks)
        return NodeRun(self.nodes, self.now, self.ended, self._busy_s, moved)

    def _start(self, number: int) -> None:
        self._started[number] = self.now
        self._moving[number] = self.tasks[number].read_bytes, False

    def _next_ended(self) -> list[int]:
        """Go to the next event; the tasks that end with it."""
        rate = min(self.network.link, self.network.store / max(1, len(self._moving)))
        moved_s = min((left / rate for left, _ in self._moving.values()), default=math.inf)
        ran_s = self._running[0][0] - self.now if self._running else math.inf
        step_s = max(0.0, min(moved_s, ran_s))
        self.now += step_s
        if step_s:
            self._moving = {n: (left - rate * step_s, written) for n, (left, written) in self._moving.items()}
        while self._running and self._running[0][0] <= self.now:
            number = heapq.heappop(self._running)[1]
            self._moving[number] = self.tasks[number].written_bytes, True
        return [number for number in self._moved() if self._end(number)]

    def _moved(self) -> list[int]:
        return [number for number, (left, _) in self._moving.items() if left <= _LEAST_BYTES or math.isnan(left)]

    def _end(self, number: int) -> bool:
        """End a transfer: the work begins, or the task ends. Returns whether it ends."""
        _, written = self._moving.pop(number)
        if not written:
            heapq.heappush(self._running, (self.now + self.tasks[number].seconds, number))
            return False
        self.ended[self.tasks[number].label] = self.now
        self._busy_s += self.now - self._started.pop(number)
        return True
