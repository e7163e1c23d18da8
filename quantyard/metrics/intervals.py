"""Confidence intervals of measured values, and of the difference of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist, mean, stdev
from typing import Final

from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import CONFIDENCE, Estimate, Interval

_LARGE_DF: Final = 100  # from here on two terms of the expansion are exact to 1e-5
_BISECTIONS: Final = 60


def normal_quantile(confidence: float) -> float:
    """The z of a two-sided confidence, 0 to 1: the half width of an interval in standard errors."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def normal_share_below(z: float) -> float:
    """P(Z < z) of the standard normal distribution."""
    return NormalDist().cdf(z)


Z: Final = normal_quantile(CONFIDENCE)  # of the intervals in a report


@lru_cache(maxsize=1024)
def t_quantile(df: float, confidence: float = CONFIDENCE) -> float:
    """The t for which ±t contains this share of Student's distribution with `df` degrees of freedom (1 at least).

    A fractional `df` is interpolated in 1 / df. Source: Abramowitz and Stegun, 26.7.3, 26.7.4 and, for a large `df`,
    26.7.5.
    """
    if df >= _LARGE_DF:
        z = normal_quantile(confidence)
        return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    below = max(1, math.floor(df))
    if below >= df:
        return _t_of_whole(below, confidence)
    one, other = _t_of_whole(below, confidence), _t_of_whole(below + 1, confidence)
    share = (1 / below - 1 / df) / (1 / below - 1 / (below + 1))
    return one + share * (other - one)


def _t_of_whole(df: int, confidence: float) -> float:
    low, high = 0.0, math.tan(math.pi / 2 * confidence) + 1  # the quantile of df = 1 is the largest
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if t_share_within(middle, df) < confidence else (low, middle)
    return (low + high) / 2


def t_share_within(t: float, df: int) -> float:
    """P(|T| < t) of Student's distribution: the finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    angle = math.atan(t / math.sqrt(df))
    odd, term, series = df % 2, 1.0, 1.0
    for k in range(1, (df - odd) // 2):
        term *= (2 * k - 1 + odd) / (2 * k + odd) * math.cos(angle) ** 2
        series += term
    if not odd:
        return math.sin(angle) * series
    tail = math.sin(angle) * math.cos(angle) * series if df > 1 else 0.0
    return 2 / math.pi * (angle + tail)


def estimate_interval(found: Estimate, confidence: float = CONFIDENCE) -> Interval:
    """A mean and its standard error as an interval: Student's where the degrees of freedom are known."""
    half = estimate_quantile(found, confidence) * found.stderr
    return Interval(value=found.value, low=found.value - half, high=found.value + half)


def estimate_quantile(found: Estimate, confidence: float = CONFIDENCE) -> float:
    """The half width of its interval in standard errors."""
    return t_quantile(found.df, confidence) if found.df else normal_quantile(confidence)


def interval_difference(one: Estimate, other: Estimate) -> Interval:
    """`one` less `other`. Where both know the same clusters of a text, the difference is taken cluster by cluster;
    else the two count as independent. Files that read the same tokens have errors in common, so this is then wider.
    """
    if len(one.clusters) == len(other.clusters) >= 2:
        differences = [a - b for a, b in zip(one.clusters, other.clusters, strict=True)]
        n = len(differences)
        return estimate_interval(Estimate(value=mean(differences), stderr=stdev(differences) / math.sqrt(n), df=n - 1))
    known = [found.df for found in (one, other) if found.df]
    stderr = math.hypot(one.stderr, other.stderr)
    return estimate_interval(Estimate(value=one.value - other.value, stderr=stderr, df=min(known, default=None)))


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


def ppl_change_interval(found: Divergence | None, confidence: float = CONFIDENCE) -> Interval | None:
    """PPL / baseline PPL - 1 with its interval (0.01: 1 % more); None for the baseline, or if it is not finite."""
    ratio = found.ln_perplexity_ratio if found else None
    return mapped_interval(estimate_interval(ratio, confidence), math.expm1) if ratio else None
