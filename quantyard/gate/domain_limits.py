"""Judges the mean KLD of domains: the worst one, and those with limits of their own.

A limit of the worst domain says that no domain is above it. It holds if the whole interval of each domain is within it,
which needs no correction (an intersection of hypotheses is rejected by rejecting each: Berger, Technometrics 24 (1982)
295). That one is above it is said after correction for the number of domains, since one of many is above by chance.
Limits of several domains are corrected together, by Holm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from quantyard.gate.budgets import TEXT, most_specific_gate_budget
from quantyard.metrics.domain_figures import domain_name, worst_domain
from quantyard.metrics.holm import holm_adjusted
from quantyard.metrics.intervals import estimate_interval, normal_share_below, t_share_within
from quantyard.protocol.divergence_results import DomainDivergence, Domains
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.gate import Outcome

WORST: Final = "worst"
_LARGE_DF: Final = 1000


@dataclass(frozen=True)
class JudgedDomain:
    """One limit of one domain, or of the worst."""

    key: str  # the domain's name, or WORST
    what: str  # for the finding: "code", "the worst of 14 domains, code,"
    limit: float
    interval: Interval
    outcome: Outcome
    n_tokens: int


def judged_domains(found: Domains, limits: Mapping[str, float], confidence: float) -> Iterator[JudgedDomain]:
    """Every domain that a limit holds for, and the worst if it has one."""
    if WORST in limits and (judged := _judged_worst(found, limits[WORST], confidence)):
        yield judged
    named = [key for key in limits if key not in (TEXT, WORST)]
    chosen = [(one, limits[key]) for one in found.domains if (key := most_specific_gate_budget(one.domain, named))]
    compared = [(one, one.mean_kld, limit) for one, limit in chosen if one.mean_kld]
    adjusted = holm_adjusted([kld_limit_p(kld, limit) for _, kld, limit in compared])
    for (one, kld, limit), p in zip(compared, adjusted, strict=True):
        yield _judged_domain(one, kld, limit, p, confidence)


def _judged_worst(found: Domains, limit: float, confidence: float) -> JudgedDomain | None:
    worst = worst_domain(found, confidence)
    if worst is None:
        return None
    outcome = _interval_outcome(worst.mean_kld, limit)
    what = f"the worst of {worst.n_domains} domains, {domain_name(worst.domain)},"
    return JudgedDomain(WORST, what, limit, worst.mean_kld, outcome, worst.found.n_tokens)


def _judged_domain(
    one: DomainDivergence, kld: Estimate, limit: float, adjusted: float, confidence: float
) -> JudgedDomain:
    interval = estimate_interval(kld, confidence)
    outcome = _interval_outcome(interval, limit)
    if outcome == "failed" and adjusted >= 1 - confidence:
        outcome = "too few questions"
    return JudgedDomain(one.domain, domain_name(one.domain), limit, interval, outcome, one.n_tokens)


def _interval_outcome(interval: Interval, limit: float) -> Outcome:
    return "passed" if interval.high <= limit else "failed" if interval.low > limit else "too few questions"


def kld_limit_p(found: Estimate, null: float) -> float:
    """Student's test that the mean is `null`; the normal one where the degrees of freedom are not known or large."""
    if found.stderr == 0:
        return 1.0 if found.value == null else 0.0
    t = abs(found.value - null) / found.stderr
    if found.df is None or found.df > _LARGE_DF:
        return 2 * normal_share_below(-t)
    return max(0.0, 1 - t_share_within(t, max(1, math.floor(found.df))))
