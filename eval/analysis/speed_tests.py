"""What the repeats of one timed test say: tokens per second and joules per token, with Student's intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.speed_results import SpeedTest


@dataclass(frozen=True)
class TimedTest:
    """The seconds of every repeat, and the joules, if they could be read."""

    kind: Literal["pp", "tg"]
    tokens: int
    seconds: tuple[float, ...]
    joules: tuple[float, ...] = ()
    depth: int = 0
    batch: int = 512


def speed_test(timed: TimedTest) -> SpeedTest:
    """The result of a test."""
    rates = [timed.tokens / seconds for seconds in timed.seconds]
    energies = [joules / timed.tokens for joules in timed.joules]
    return SpeedTest(
        kind=timed.kind, tokens=timed.tokens, depth=timed.depth, batch=timed.batch, repeats=len(rates),
        tokens_per_s=mean(rates), interval=repeats_interval(rates),
        joules_per_token=mean(energies) if energies else None, joules_interval=repeats_interval(energies),
    )  # fmt: skip


def repeats_interval(values: Sequence[float]) -> Interval | None:
    """The mean of independent repeats with its interval; None for fewer than two."""
    if len(values) < 2:
        return None
    stderr = stdev(values) / math.sqrt(len(values))
    found = estimate_interval(Estimate(value=mean(values), stderr=stderr, df=len(values) - 1))
    return found.model_copy(update={"low": max(0.0, found.low)})
