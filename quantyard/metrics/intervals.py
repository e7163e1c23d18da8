"""Confidence intervals of measured values, and of the difference of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Final

from quantyard.protocol.measurements import CONFIDENCE, Divergence, Estimate, Interval


def normal_quantile(confidence: float) -> float:
    """The z of a two-sided confidence, 0 to 1: the half width of an interval in standard errors."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


Z: Final = normal_quantile(CONFIDENCE)  # of the intervals in a report


def normal_interval(found: Estimate, z: float = Z) -> Interval:
    """A mean and its standard error as an interval."""
    half = z * found.stderr
    return Interval(value=found.value, low=found.value - half, high=found.value + half)


def interval_difference(one: Estimate, other: Estimate) -> Interval:
    """`one` less `other`, as if they were independent. Two files that read the same tokens have correlated errors, so
    the true interval is narrower: a difference that this interval shows is real.
    """
    return normal_interval(Estimate(value=one.value - other.value, stderr=math.hypot(one.stderr, other.stderr)))


def wilson_interval(right: float, n: float, z: float = Z) -> Interval:
    """Wilson's score interval (JASA 22, 1927, 209) of the share `right` of `n`; 0 to 1 where nothing was asked."""
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0)
    p, spread = right / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / spread
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / spread
    return Interval(value=p, low=min(p, max(0.0, centre - half)), high=max(p, min(1.0, centre + half)))


def mapped_interval(found: Interval, rising: Callable[[float], float]) -> Interval | None:
    """The interval in another unit, by an increasing function; None if the result is not finite."""
    try:
        value, low, high = (rising(x) for x in (found.value, found.low, found.high))
    except OverflowError:
        return None
    return Interval(value=value, low=low, high=high) if math.isfinite(high) else None


def ppl_change_interval(found: Divergence | None, z: float = Z) -> Interval | None:
    """PPL / baseline PPL - 1 with its interval (0.01: 1 % more); None for the baseline, or if it is not finite."""
    ratio = found.ln_perplexity_ratio if found else None
    return mapped_interval(normal_interval(ratio, z), math.expm1) if ratio else None
