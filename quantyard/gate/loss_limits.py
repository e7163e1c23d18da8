"""Judges how far predictions moved: the change of perplexity, and the mean KLD of texts, domains and caches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from quantyard.gate import findings as words
from quantyard.gate.budgets import TEXT, most_specific_gate_budget
from quantyard.gate.domain_limits import JudgedDomain, judged_domains
from quantyard.gate.judged_file import JudgedFile, judge_gate_interval, judge_unmeasured_loss
from quantyard.gate.sample_size import gate_sample_size
from quantyard.metrics.intervals import estimate_interval, mapped_interval
from quantyard.protocol.gate import BudgetResult


def judge_ppl_change(file: JudgedFile, name: str, limit: float) -> Iterator[BudgetResult]:
    divergence = file.found.divergence if file.found else None
    ratio = divergence.ln_perplexity_ratio if divergence else None
    if divergence is None or ratio is None:
        yield judge_unmeasured_loss(file, name, limit)
        return
    interval = estimate_interval(ratio, file.budget.confidence)
    distance = abs(math.log1p(limit / 100) - ratio.value)
    tokens = gate_sample_size(divergence.n_tokens, interval.high - interval.value, distance)
    change = mapped_interval(interval, lambda ln: 100 * math.expm1(ln))
    judged = judge_gate_interval(file, name, limit, change, words.gate_tokens_needed(tokens, divergence.n_tokens))
    yield judged.model_copy(update={"finding": judged.finding + words.gate_perplexity_parts(divergence)})


def judge_mean_kld(file: JudgedFile, name: str, budget: float | Mapping[str, float]) -> Iterator[BudgetResult]:
    """Judges the suite's text, and the domains that the budget names; "not measured" for a name that has no result."""
    limits = budget if isinstance(budget, Mapping) else {TEXT: budget}
    if TEXT in limits:
        yield _mean_kld_of_text(file, name, limits[TEXT])
    domains, judged = file.found.domains if file.found else None, set[str]()
    for found in judged_domains(domains, limits, file.budget.confidence) if domains else ():
        yield _mean_kld_of_domain(file, name, found)
        judged |= {key for key in limits if key == found.key or most_specific_gate_budget(found.key, [key])}
    for key in limits:
        if key not in judged and key != TEXT:
            yield judge_unmeasured_loss(file, name, limits[key], key)


def _mean_kld_of_domain(file: JudgedFile, name: str, found: JudgedDomain) -> BudgetResult:
    half, distance = found.interval.high - found.interval.value, abs(found.limit - found.interval.value)
    needed = words.gate_domain_tokens_needed(gate_sample_size(found.n_tokens, half, distance), found.n_tokens)
    finding = words.gate_judged(name, found.what, found.interval, found.limit, found.outcome, needed)
    return file.result(
        name, found.limit, found.outcome, finding, task=found.key, value=found.interval.value, interval=found.interval
    )


def _mean_kld_of_text(file: JudgedFile, name: str, limit: float) -> BudgetResult:
    divergence = file.found.divergence if file.found else None
    kld = divergence.mean_kld if divergence else None
    if divergence is None or kld is None:
        return judge_unmeasured_loss(file, name, limit)
    interval = estimate_interval(kld, file.budget.confidence)
    tokens = gate_sample_size(divergence.n_tokens, interval.high - interval.value, abs(limit - kld.value))
    needed = words.gate_tokens_needed(tokens, divergence.n_tokens)
    judged = judge_gate_interval(file, name, limit, interval, needed)
    return judged.model_copy(update={"finding": judged.finding + words.gate_divergence_parts(divergence)})


def judge_cache_kld(file: JudgedFile, name: str, limits: Mapping[str, float]) -> Iterator[BudgetResult]:
    """Judges every type of the KV cache that was measured and that the budget names or means by a pattern."""
    cache = file.found.cache if file.found else None
    judged: set[str] = set()
    for found in cache.results if cache else ():
        pattern = most_specific_gate_budget(found.type, limits)
        if cache is None or pattern is None or found.mean_kld is None:
            continue
        limit, interval = limits[pattern], estimate_interval(found.mean_kld, file.budget.confidence)
        tokens = gate_sample_size(cache.n_tokens, interval.high - interval.value, abs(limit - interval.value))
        needed = words.gate_tokens_needed(tokens, cache.n_tokens, "cache.text")
        judged.add(pattern)
        yield judge_gate_interval(file, name, limit, interval, needed, found.type)
    for pattern in limits:
        if pattern not in judged:
            task = "" if pattern == "*" else pattern
            what = words.gate_unmeasured_name(name, task, others=False)
            yield file.unmeasured(name, limits[pattern], what, task)
