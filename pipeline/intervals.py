"""Intervals of means that were measured, and of the difference of two files."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from pipeline.errors import QuantyardError
from pipeline.evaluation import CONFIDENCE, Divergence, Estimate, Interval


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


def kld_difference(one: Divergence, other: Divergence) -> Interval:
    """Mean KL divergence of one file less that of another, nats.

    Raises:
        QuantyardError: they did not read the same text.
    """
    assert one.mean_kld is not None, "it was held against a baseline"
    assert other.mean_kld is not None, "it was held against a baseline"
    if (one.text, one.n_tokens) != (other.text, other.n_tokens):
        raise QuantyardError(f"{one.label} and {other.label} did not read the same text.", "Please report this.")
    return difference(one.mean_kld, other.mean_kld)
