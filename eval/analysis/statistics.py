"""The statistics of the report: 95 % intervals, McNemar's exact test, and the number of questions needed.

Two files answer the same questions, so differences are paired: only questions that flip say anything about the
difference. Two independent intervals would be several times too wide.

| what | how | source |
|---|---|---|
| a proportion | score interval, `quantyard.metrics.intervals` | Wilson, JASA 22 (1927) 209 |
| a mean, a mean of differences | t interval | Student, Biometrika 6 (1908) 1 |
| a difference of paired proportions | score interval | Tango, Statistics in Medicine 17 (1998) 891 |
| whether flips favour one side | exact binomial test | McNemar, Psychometrika 12 (1947) 153 |
| perplexities and their ratio | linearised ratio of sums | Cochran, Sampling Techniques (1977), ch. 6 |

Tango's interval inverts McNemar's test, and keeps its coverage with few questions and few flips, where Wald's and the
bootstrap's collapse to a point (though 20 questions without a flip prove nothing). Fagerland, Lydersen and Laake,
Statistics in Medicine 33 (2014) 2850, compare it with eight others and recommend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantyard.metrics.intervals import Z
from quantyard.protocol.measurements import CONFIDENCE, Interval

Numbers = NDArray[np.float64]
_LARGE_DF: Final = 10_000  # from here on the quantile is within 0.02 % of the normal one
_BISECTIONS: Final = 60


# ---- one file ----------------------------------------------------------------------------------------


def mean_interval(values: Numbers) -> Interval:
    """The t interval of a mean, in the unit of `values`; a point if there is only one value."""
    mean = float(values.mean())
    return _around(mean, _standard_error(values))


def perplexity_interval(loglikelihoods: Numbers, weights: Numbers) -> Interval:
    """Perplexity, exp(-Σ loglikelihood / Σ weight) over documents; loglikelihoods in nats."""
    return _mapped(_ratio_interval(-loglikelihoods, weights), _exp)


def bits_interval(loglikelihoods: Numbers, weights: Numbers) -> Interval:
    """Bits per byte: -Σ loglikelihood / Σ bytes / ln 2."""
    return _mapped(_ratio_interval(-loglikelihoods, weights), lambda nats: nats / math.log(2))


# ---- a file against the baseline ---------------------------------------------------------------------


def paired_proportions_interval(lost: float, gained: float, n: float, z: float = Z) -> Interval:
    """Tango's score interval for (gained - lost) / n; a difference of proportions, -1 to 1.

    Counts may be fractions, so that the same rates can be scaled to more questions.
    """
    difference = (gained - lost) / n
    low = _root(lambda d: _tango(lost, gained, n, d) - z, -1.0, difference)
    high = _root(lambda d: _tango(lost, gained, n, d) + z, difference, 1.0)
    return Interval(value=difference, low=low, high=high)


def paired_means_interval(baseline: Numbers, other: Numbers) -> Interval:
    """The t interval of the mean of other - baseline.

    If all differences are equal, their standard error is 0. The interval is then as wide as Tango's without flips,
    z² / (n + z²) of the scores' range (at least 1): n equal questions do not exclude a difference on the next one.
    """
    differences = other - baseline
    mean = float(differences.mean())
    if len(differences) > 1 and float(np.ptp(differences)) > 0:
        return _around(mean, _standard_error(differences))
    both = np.concatenate([baseline, other])
    half = max(1.0, float(np.ptp(both))) * Z * Z / (len(differences) + Z * Z)
    return Interval(value=mean, low=mean - half, high=mean + half)


def perplexity_change(baseline: Numbers, other: Numbers, weights: Numbers) -> Interval:
    """Relative change of perplexity (0.01: 1 % more); `baseline` and `other` are loglikelihoods."""
    return _mapped(_ratio_interval(baseline - other, weights), _expm1)


def bits_change(baseline: Numbers, other: Numbers) -> Interval:
    """Relative change of bits per byte, Σ other / Σ baseline - 1; both are loglikelihoods of the same documents."""
    return _mapped(_ratio_interval(-other, -baseline), lambda ratio: ratio - 1)


def mcnemar_p(lost: int, gained: int) -> float:
    """The exact two-sided McNemar test: p under the hypothesis that a flip is lost or gained with equal probability."""
    flips, fewer = lost + gained, min(lost, gained)
    i = np.arange(1, fewer + 1)
    log_terms = np.concatenate([[0.0], np.cumsum(np.log(flips - i + 1) - np.log(i))]) - flips * math.log(2)
    return min(1.0, 2 * float(np.exp(log_terms).sum()))


# ---- how many questions are needed -------------------------------------------------------------------


def is_interval_settled(interval: Interval, margin: float) -> bool:
    """Whether an interval allows a verdict: it excludes 0, or lies within ± margin."""
    return interval.low > 0 or interval.high < 0 or (interval.low >= -margin and interval.high <= margin)


def questions_needed_for_proportions(lost: int, gained: int, n: int, margin: float) -> int:
    """The number of questions (more than `n`) that would settle the verdict, if flips occur at the observed rates.

    With the observed difference d, the interval's half width h must shrink to |d| (it excludes 0, and McNemar's test
    must agree) or to margin - |d| (it lies within the margin), whichever comes first: max(|d|, margin - |d|).
    The interval itself is computed for counts scaled to m questions, because with few flips its width is not
    proportional to 1/√m. Without any flips, z² (1 - margin) / margin questions are needed: 381 for a margin of 1 %.
    """

    def enough(m: int) -> bool:
        more_lost, more_gained = lost * m / n, gained * m / n
        interval = paired_proportions_interval(more_lost, more_gained, m)
        leaves_out_0 = interval.low > 0 or interval.high < 0
        agrees = not leaves_out_0 or mcnemar_p(round(more_lost), round(more_gained)) < 1 - CONFIDENCE
        return is_interval_settled(interval, margin) and (agrees or max(-interval.low, interval.high) <= margin)

    return _first(enough, n + 1)


def questions_needed_for_means(interval: Interval, n: int, margin: float) -> int:
    """The same for intervals whose width is proportional to 1/√m: m = n (h / max(|d|, margin - |d|))²."""
    half = (interval.high - interval.low) / 2
    target = max(abs(interval.value), margin - abs(interval.value))
    return max(n + 1, math.ceil(n * (half / target) ** 2))


# ---- the parts ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def t_quantile(df: int) -> float:
    """The t for which ±t contains 95 % of Student's distribution with `df` degrees of freedom."""
    return _root(lambda t: CONFIDENCE - _t_within(t, min(df, _LARGE_DF)), 0.0, 13.0)  # 12.7 for df = 1


def _t_within(t: float, df: int) -> float:
    """P(|T| < t): the finite series 26.7.3 and 26.7.4 of Abramowitz and Stegun."""
    angle = math.atan(t / math.sqrt(df))
    odd = df % 2
    k = np.arange(1, (df - odd) // 2)
    ratios = (2 * k - 1 + odd) / (2 * k + odd) * math.cos(angle) ** 2
    series = 1.0 + float(np.cumprod(ratios).sum())
    if not odd:
        return math.sin(angle) * series
    tail = math.sin(angle) * math.cos(angle) * series if df > 1 else 0.0
    return 2 / math.pi * (angle + tail)


def _tango(lost: float, gained: float, n: float, d: float) -> float:
    """Tango's statistic for the hypothesis that the difference is `d`; it decreases with `d`.

    `q` is the maximum likelihood estimate of the share of lost questions under that hypothesis.
    """
    b = -gained - lost + (2 * n - gained + lost) * d
    q = (math.sqrt(max(0.0, b * b + 8 * n * lost * d * (1 - d))) - b) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    excess = gained - lost - n * d
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def _ratio_interval(numerators: Numbers, denominators: Numbers) -> Interval:
    """Σ numerators / Σ denominators over documents, each a pair, with the delta method's standard error."""
    ratio = float(numerators.sum() / denominators.sum())
    residuals = numerators - ratio * denominators
    return _around(ratio, _standard_error(residuals, abs(float(denominators.mean()))))


def _standard_error(values: Numbers, per: float = 1.0) -> tuple[float, int]:
    """Standard error of the mean of `values`, divided by `per`; and how many there are."""
    n = len(values)
    return (float(values.std(ddof=1)) / math.sqrt(n) / per if n > 1 else 0.0), n


def _around(value: float, error: tuple[float, int]) -> Interval:
    stderr, n = error
    half = t_quantile(n - 1) * stderr if stderr > 0 else 0.0
    return Interval(value=value, low=value - half, high=value + half)


def _mapped(interval: Interval, rising: Callable[[float], float]) -> Interval:
    return Interval(value=rising(interval.value), low=rising(interval.low), high=rising(interval.high))


def _exp(x: float) -> float:
    """A capped exponential: an interval over few documents may overflow, and JSON cannot hold infinity."""
    return math.exp(min(x, 700.0))


def _expm1(x: float) -> float:
    return math.expm1(min(x, 700.0))


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a decreasing function, by bisection; an end of the range if there is none."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _first(enough: Callable[[int], bool], start: int) -> int:
    """The smallest number from `start` on for which `enough` holds; `enough` must be monotonic."""
    low, high = start - 1, start
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def as_float64(values: Any) -> Numbers:
    """`values` as a float64 array."""
    return np.asarray(values, dtype=np.float64)
