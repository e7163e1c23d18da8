"""The statistics of the report: 95 % intervals, McNemar's exact test, t tests.

Two files answer the same questions, so differences are paired: only questions that flip say anything about the
difference. Two independent intervals would be several times too wide.

| what | how | source |
|---|---|---|
| a proportion | score interval, `quantyard.metrics.intervals` | Wilson, JASA 22 (1927) 209 |
| a mean, a mean of differences | t interval | Student, Biometrika 6 (1908) 1 |
| a difference of paired proportions | score interval | Tango, Statistics in Medicine 17 (1998) 891 |
| whether flips favour one side | exact binomial test | McNemar, Psychometrika 12 (1947) 153 |
| perplexities and their ratio | jackknifed ratio of sums over documents | Cochran, Sampling Techniques (1977), ch. 6 |
| questions in groups (one passage) | design effect | Rao and Scott, Biometrics 48 (1992) 577 |

Tango's interval inverts McNemar's test, and keeps its coverage with few questions and few flips, where Wald's and the
bootstrap's collapse to a point (though 20 questions without a flip prove nothing). Fagerland, Lydersen and Laake,
Statistics in Medicine 33 (2014) 2850, compare it with eight others and recommend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantyard.metrics.intervals import Z, estimate_interval, normal_share_below, t_share_within, wilson_interval
from quantyard.protocol.estimates import Estimate, Interval

Numbers = NDArray[np.float64]
Groups = Sequence[int]  # of each question, the group of questions about one passage
_BISECTIONS: Final = 60
_MANY: Final = 1000  # degrees of freedom from which on t is normal to four digits


# ---- one file ----------------------------------------------------------------------------------------


def mean_interval(values: Numbers, groups: Groups | None = None) -> Interval:
    """The t interval of a mean, in the unit of `values`; a point if there is only one value or one group."""
    return _ratio_interval(values, np.ones_like(values), groups)


def proportion_interval(right: Numbers, groups: Groups | None = None) -> Interval:
    """Wilson's interval of the share of ones; with groups, of as many questions as they are worth."""
    worth = 1 / design_effect(right, groups)
    return wilson_interval(float(right.sum()) * worth, len(right) * worth)


def design_effect(values: Numbers, groups: Groups | None) -> float:
    """How many questions in groups say as much as one independent question; 1 at least.

    The variance of their mean over that of independent questions, and the square of t over z for as few groups. Counts
    divided by it may be used as those of independent questions. Source: Rao and Scott, Biometrics 48 (1992) 577.
    """
    if groups is None or len(values) < 2 or float(np.ptp(values)) == 0:
        return 1.0
    grouped = mean_interval(values, groups)
    independent = Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return max(1.0, ((grouped.high - grouped.value) / independent) ** 2)


def perplexity_interval(loglikelihoods: Numbers, weights: Numbers) -> Interval:
    """Perplexity, exp(-Σ loglikelihood / Σ weight) over documents; loglikelihoods in nats."""
    return _mapped_statistic_interval(_ratio_interval(-loglikelihoods, weights), _capped_exp)


def bits_interval(loglikelihoods: Numbers, weights: Numbers) -> Interval:
    """Bits per byte: -Σ loglikelihood / Σ bytes / ln 2."""
    return _mapped_statistic_interval(_ratio_interval(-loglikelihoods, weights), lambda nats: nats / math.log(2))


# ---- a file against the baseline ---------------------------------------------------------------------


def paired_proportions_interval(lost: float, gained: float, n: float, z: float = Z) -> Interval:
    """Tango's score interval for (gained - lost) / n; a difference of proportions, -1 to 1.

    Counts may be fractions, so that the same rates can be scaled to more questions.
    """
    difference = (gained - lost) / n
    low = _bisected_root(lambda d: _tango_statistic(lost, gained, n, d) - z, -1.0, difference)
    high = _bisected_root(lambda d: _tango_statistic(lost, gained, n, d) + z, difference, 1.0)
    return Interval(value=difference, low=low, high=high)


def paired_means_interval(baseline: Numbers, other: Numbers, groups: Groups | None = None) -> Interval:
    """The t interval of the mean of other - baseline.

    If all differences are equal, their standard error is 0. The interval is then as wide as Tango's without flips,
    z² / (n + z²) of the scores' range (at least 1): n equal questions do not exclude a difference on the next one.
    """
    differences = other - baseline
    mean = float(differences.mean())
    if len(differences) > 1 and float(np.ptp(differences)) > 0:
        return mean_interval(differences, groups)
    both = np.concatenate([baseline, other])
    half = max(1.0, float(np.ptp(both))) * Z * Z / (len(differences) + Z * Z)
    return Interval(value=mean, low=mean - half, high=mean + half)


def perplexity_change(baseline: Numbers, other: Numbers, weights: Numbers) -> Interval:
    """Relative change of perplexity (0.01: 1 % more); `baseline` and `other` are loglikelihoods."""
    return _mapped_statistic_interval(_ratio_interval(baseline - other, weights), _capped_expm1)


def bits_change(baseline: Numbers, other: Numbers) -> Interval:
    """Relative change of bits per byte, Σ other / Σ baseline - 1; both are loglikelihoods of the same documents."""
    return _mapped_statistic_interval(_ratio_interval(-other, -baseline), lambda ratio: ratio - 1)


def paired_means_p(baseline: Numbers, other: Numbers, groups: Groups | None = None) -> float:
    """The two-sided t test of the mean of other - baseline."""
    differences = other - baseline
    return _t_p(_ratio_estimate(differences, np.ones_like(differences), groups), 0.0, len(differences))


def perplexity_change_p(baseline: Numbers, other: Numbers, weights: Numbers) -> float:
    """The two-sided t test of the logarithm of the ratio of two perplexities."""
    return _t_p(_ratio_estimate(baseline - other, weights), 0.0, len(weights))


def bits_change_p(baseline: Numbers, other: Numbers) -> float:
    """The two-sided t test of the ratio of two numbers of bits per byte."""
    return _t_p(_ratio_estimate(-other, -baseline), 1.0, len(baseline))


def mcnemar_p(lost: int, gained: int) -> float:
    """The exact two-sided McNemar test: p under the hypothesis that a flip is lost or gained with equal probability."""
    flips, fewer = lost + gained, min(lost, gained)
    i = np.arange(1, fewer + 1)
    log_terms = np.concatenate([[0.0], np.cumsum(np.log(flips - i + 1) - np.log(i))]) - flips * math.log(2)
    return min(1.0, 2 * float(np.exp(log_terms).sum()))


# ---- the parts ---------------------------------------------------------------------------------------


def _tango_statistic(lost: float, gained: float, n: float, d: float) -> float:
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


def _ratio_interval(numerators: Numbers, denominators: Numbers, groups: Groups | None = None) -> Interval:
    return estimate_interval(_ratio_estimate(numerators, denominators, groups))


def _ratio_estimate(numerators: Numbers, denominators: Numbers, groups: Groups | None = None) -> Estimate:
    """Σ numerators / Σ denominators over documents, each a pair; those of one group count as one cluster.

    The standard error is the jackknife's, which leaves each cluster out once, and the degrees of freedom are Kish's
    effective number of clusters less one, (Σ w)² / Σ w² - 1 of the denominators w (Survey Sampling, 1965, ch. 8): a
    text with one long document among short ones says little more than that one. A single cluster has no error.
    """
    over, under = _summed_groups(numerators, groups), _summed_groups(denominators, groups)
    ratio, n = float(over.sum() / under.sum()), len(over)
    if n == 1:
        return Estimate(value=ratio, stderr=0.0)
    without, weights = (over.sum() - over) / (under.sum() - under), np.abs(under)
    stderr = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    return Estimate(value=ratio, stderr=stderr, df=max(1.0, effective - 1))


def _t_p(found: Estimate, null: float, n: int) -> float:
    """Student's two-sided test; of `n` differences that are all alike, the sign test's p."""
    if found.stderr == 0 or found.df is None:
        return 2.0 ** (1 - n) if found.value != null else 1.0
    t, df = abs(found.value - null) / found.stderr, math.floor(found.df)
    return 2 * normal_share_below(-t) if df > _MANY else max(0.0, 1 - t_share_within(t, df))


def _summed_groups(values: Numbers, groups: Groups | None) -> Numbers:
    """The sum of each group, in any order; the values themselves where there are no groups."""
    if groups is None:
        return values
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    return np.asarray(np.bincount(which, weights=values))


def _mapped_statistic_interval(interval: Interval, rising: Callable[[float], float]) -> Interval:
    return Interval(value=rising(interval.value), low=rising(interval.low), high=rising(interval.high))


def _capped_exp(x: float) -> float:
    """A capped exponential: an interval over few documents may overflow, and JSON cannot hold infinity."""
    return math.exp(min(x, 700.0))


def _capped_expm1(x: float) -> float:
    return math.expm1(min(x, 700.0))


def _bisected_root(falling: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a decreasing function, by bisection; an end of the range if there is none."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def as_float64(values: Any) -> Numbers:
    """`values` as a float64 array."""
    return np.asarray(values, dtype=np.float64)
