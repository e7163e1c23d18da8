"""Intervals of means that were measured, and of the difference of two."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from quantyard.protocol.evaluation import CONFIDENCE, Estimate, Interval


def quantile(confidence: float) -> float:
    """The z of a two-sided confidence, 0 to 1: how many standard errors an interval reaches to each side."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


Z: Final = quantile(CONFIDENCE)  # of the intervals in a report


def normal(found: Estimate, z: float = Z) -> Interval:
    """A mean and its standard error as an interval."""
    half = z * found.stderr
    return Interval(value=found.value, low=found.value - half, high=found.value + half)


def difference(one: Estimate, other: Estimate) -> Interval:
    """`one` less `other`, as if their texts were drawn apart. Two files that read the same tokens err together, so the
    true interval is narrower: what this one calls a difference is one.
    """
    return normal(Estimate(value=one.value - other.value, stderr=math.hypot(one.stderr, other.stderr)))
