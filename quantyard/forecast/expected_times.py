"""The times that the steps of a plan are expected to take. How they are estimated: time.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from quantyard.records import dataclass


@dataclass(frozen=True)
class StepTime:
    """What one step is expected to take, seconds. `rough`: from other types, threads or engines than it will have.

    `times`: how many times as long it may take, since the estimate is from another architecture; 1: it is not.
    """

    seconds: float
    rough: bool
    times: float = 1.0

    @property
    def most_seconds(self) -> float:
        """What it may take."""
        return self.seconds * self.times


@dataclass(frozen=True)
class Forecast:
    """The times of the steps that are to run, by label; steps without an estimate are in `unknown`."""

    steps: Mapping[str, StepTime] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)  # label → stage
    would_gain: bool = False  # whether `make rates` would give estimates for some of them

    @property
    def seconds(self) -> float:
        """The sum of all estimates, with concurrency taken into account."""
        return sum(step.seconds for step in self.steps.values())

    @property
    def most_seconds(self) -> float:
        """The sum of what each may take."""
        return sum(step.most_seconds for step in self.steps.values())
