"""Reports the shards of a stage as one step: one bar while any of them runs, and one line in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from quantyard.execution.reporter import StepReporter
from quantyard.plan.sharded_steps import StepWithShards, steps_with_shards
from quantyard.plan.steps import Step
from quantyard.protocol.base import Progress, StageResult


@dataclass
class _Title:
    """A stage in shards while it runs."""

    of: StepWithShards
    number: int
    n_left: int  # shards that were not finished before
    began_s: float | None = None
    is_over: bool = False
    shards: dict[str, Progress] = field(default_factory=dict)

    def together(self) -> Progress:
        """What all shards have done. Of those that have not told yet, as many are left as of the others."""
        last = list(self.shards.values())[-1]
        told = [each for each in self.shards.values() if each.total is not None and each.unit == last.unit]
        if last.total is None or not told:
            return last
        total = round(sum(each.total or 0 for each in told) * self.n_left / len(told))
        return last.model_copy(update={"done": min(total, sum(each.done for each in told)), "total": total})


class ShardReporter:
    """Tells another reporter of stages instead of shards; their numbers are those of the lines of the plan.

    Args:
        finished: labels of the steps that were finished before.
    """

    def __init__(
        self, steps: Sequence[Step], finished: Collection[str], reporter: StepReporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._reporter, self._clock, self._lock = steps, reporter, clock, threading.Lock()
        self._titles: dict[str, _Title] = {}  # by the label of each of its steps
        lines = steps_with_shards(steps)
        self._n_lines = len(lines)
        for number, line in enumerate(lines, 1):
            n_left = sum(shard.label not in finished for shard in line.shards)
            self._titles |= dict.fromkeys(line.labels, _Title(line, number, n_left))

    def begin(self, label: str, number: int, of: int) -> None:
        """The stage begins with the first of its steps. A run of several files is told as that of the first."""
        del of
        title = self._titles[self._steps[number - 1].label]
        if not title.of.shards:
            self._reporter.begin(label, title.number, self._n_lines)
            return
        self._titles.setdefault(label, title)
        if title.began_s is None:
            title.began_s = self._clock()
            self._reporter.begin(title.of.title, title.number, self._n_lines)

    def progress(self, label: str, progress: Progress) -> None:
        """What all shards have done so far."""
        title = self._titles.get(label)
        if title is None or not title.of.shards:
            self._reporter.progress(label, progress)
        elif label != title.of.step.label:  # putting them together takes seconds
            with self._lock:
                title.shards[label] = progress
                together = title.together()
            self._reporter.progress(title.of.title, together)

    def end(self, label: str, result: StageResult) -> None:
        """The stage ends with the step that puts its shards together, after the time since the first of them."""
        title = self._titles.get(label)
        if title is None or not title.of.shards:
            self._reporter.end(label, result)
        elif label == title.of.step.label:
            title.is_over = True
            took_s = self._clock() - title.began_s if title.began_s is not None else result.duration_s
            self._reporter.end(title.of.title, result.model_copy(update={"duration_s": took_s}))

    def fail(self, label: str, text: str) -> None:
        """The stage fails with the first of its shards that fails; `text` names it."""
        title = self._titles.get(label)
        if title is None or not title.of.shards:
            self._reporter.fail(label, text)
        elif not title.is_over:
            title.is_over = True
            self._reporter.fail(title.of.title, text)

    def note(self, text: str) -> None:
        """A line for the user."""
        self._reporter.note(text)
