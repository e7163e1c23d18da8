"""What is told of a running step: how much is done, how long it runs, what is left, and what runs inside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Final

from quantyard.formatting.numbers import format_bytes, format_count, format_digits, format_percent, format_running
from quantyard.formatting.printable import printable_line
from quantyard.protocol.base import Progress
from quantyard.records import dataclass

_PACED: Final = ("questions", "chunks", "repeats")  # shown with their number per second
_STEPS: Final = {"publish": "files"}  # what a step is, if not a stage
_SURE_AFTER_S: Final = 3.0  # before that, a pace says nothing
Clock = Callable[[], float]


@dataclass
class RunningStep:
    """One running step, and its last progress.

    Args:
        expected_s: seconds that the plan expects; None: not known.
    """

    clock: Clock = time.monotonic
    expected_s: float | None = None
    last: Progress | None = None
    _began: float = field(init=False)
    _first: tuple[float, int] | None = field(init=False, default=None)  # when progress was first told, and how much

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self.clock() - self._began

    @property
    def share(self) -> float | None:
        """How much of it is done; None: not known."""
        return min(1.0, self.last.done / self.last.total) if self.last and self.last.total else None

    def take(self, progress: Progress) -> None:
        """Keep what it told; a total or unit that changed begins the pace anew."""
        is_new = self.last is None or (self.last.total, self.last.unit) != (progress.total, progress.unit)
        if self._first is None or is_new:
            self._first = (self.clock(), progress.done)
        self.last = progress

    @property
    def per_second(self) -> float | None:
        """How much is done in a second; None: not known yet."""
        if self.last is None or self._first is None:
            return None
        since, before = self._first
        seconds, done = self.clock() - since, self.last.done - before
        return done / seconds if seconds >= _SURE_AFTER_S and done > 0 else None

    @property
    def left_s(self) -> float | None:
        """Seconds that are left by its pace, else by the plan; None: not known."""
        if self.last and self.last.total and (pace := self.per_second):
            return (self.last.total - self.last.done) / pace
        if self.expected_s is None or self.elapsed_s >= self.expected_s:
            return None
        return self.expected_s - self.elapsed_s

    @property
    def text(self) -> str:
        """Such as "320 of 640 questions (50 %), 41.3/s · elapsed 0:58 · about 4 min left · arc_easy"."""
        amount = amount_text(self.last, self.per_second) if self.last else ""
        what = printable_line(self.last.what) if self.last else ""
        return " · ".join(filter(None, [amount, format_running(self.elapsed_s, self.left_s), what]))


def amount_text(progress: Progress, per_second: float | None = None) -> str:
    """`135 MB of 269 MB (50 %), 42.0 MB/s`, `12 of 272 tensors (4 %)`, or `320 of 640 questions (50 %), 41.3/s`."""
    if progress.total is None:
        return ""
    share = f" ({format_percent(progress.done / progress.total, 0)})" if progress.total else ""
    if progress.unit == "bytes":
        rate = f", {format_bytes(int(per_second))}/s" if per_second else ""
        return f"{format_bytes(progress.done)} of {format_bytes(progress.total)}{share}{rate}"
    rate = f", {format_digits(per_second)}/s" if per_second and progress.unit in _PACED else ""
    return f"{format_count(progress.done)} of {format_count(progress.total)} {progress.unit}{share}{rate}"


@dataclass
class RunningSteps:
    """All steps of a run: those that run, and how many have ended.

    Args:
        expected_s: seconds that the plan expects of each step, by label; empty: not known.
    """

    expected_s: Mapping[str, float] = field(default_factory=dict)
    clock: Clock = time.monotonic
    running: dict[str, RunningStep] = field(default_factory=dict)
    n_ended: int = 0
    n_steps: int = 0
    unit: str = "stages"
    _ended: set[str] = field(default_factory=set)
    _began: float | None = None

    def begin(self, label: str, number: int, of: int) -> None:
        """A step starts. The number of ended ones counts those that were finished before."""
        if self._began is None:
            self._began = self.clock()
        self.n_steps, self.n_ended = of, max(0, number - 1 - len(self.running))
        self.running[label] = RunningStep(self.clock, self.expected_s.get(label))

    def take(self, label: str, progress: Progress) -> None:
        """A step has made progress; ignored if it does not run."""
        if label in self.running:
            self.running[label].take(progress)
            self.unit = _STEPS.get(progress.stage, "stages")

    def end(self, label: str) -> None:
        """A step has ended or failed."""
        self.running.pop(label, None)
        self._ended.add(label)
        self.n_ended += 1

    @property
    def left_s(self) -> float | None:
        """Seconds that are left of the run, by the plan and how much slower than the plan it is; None: not known."""
        left = [step.left_s for step in self.running.values()]
        is_planned = self.expected_s.keys() & {*self.running, *self._ended}
        if not is_planned or self._began is None or None in left:
            return None
        elapsed_s, planned_s = self.clock() - self._began, 0.0
        waiting_s = 0.0
        for label, expected_s in self.expected_s.items():
            step = self.running.get(label)
            if label in self._ended:
                planned_s += expected_s
            elif step is None:
                waiting_s += expected_s
            else:
                planned_s += min(step.elapsed_s, expected_s)
        slower = max(1.0, elapsed_s / planned_s) if planned_s >= 1.0 else 1.0
        return waiting_s * slower + sum(filter(None, left)) or None

    @property
    def text(self) -> str:
        """Such as "3 of 12 stages · elapsed 2:10 · about 8 min left"."""
        elapsed_s = 0.0 if self._began is None else self.clock() - self._began
        return f"{self.n_ended} of {self.n_steps} {self.unit} · {format_running(elapsed_s, self.left_s)}"
