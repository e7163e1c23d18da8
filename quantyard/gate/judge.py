"""The gate: compares every budget with what was measured of every file that is to be published.

The gate judges the interval of a measured value: passed if the whole interval is within the budget, failed if the
whole interval is outside; otherwise the outcome is "too few questions" (or too short a text). So no file passes or
fails by chance. Size and speed are single values. A budget without a measurement is "not measured", never passed; a
measurement of another file does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.errors import BadRequest
from quantyard.gate import findings as words
from quantyard.gate.behaviours import GATE_BEHAVIOURS
from quantyard.gate.budgets import (
    TEXT,
    GateBudget,
    GateBudgets,
    is_gate_budget_pattern,
    load_gate_budgets,
    most_specific_gate_budget,
)
from quantyard.gate.domain_limits import JudgedDomain, judged_domains
from quantyard.gate.sample_size import (
    gate_accuracy_loss,
    gate_answer_sample_size,
    gate_question_sample_size,
    gate_sample_size,
)
from quantyard.metrics.headline_metrics import headline_entry, metric_rank
from quantyard.metrics.intervals import estimate_interval, mapped_interval, normal_quantile, wilson_interval
from quantyard.metrics.kinds import score_metric_kind
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import BudgetResult, GateReport, Outcome
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement
from quantyard.quants.catalog import is_unquantized_type, quant_family
from quantyard.store.manifest import Manifest

__all__ = ["GateBudgets", "judge_gate_budgets", "load_gate_budgets"]


@dataclass(frozen=True)
class _File:
    """One file, its measurements and its budgets."""

    quant: str
    manifest: Manifest
    suite: str
    budget: GateBudget
    report: EvalReport | None
    found: Measurement | None  # of the file with this SHA-256

    @property
    def is_baseline(self) -> bool:
        return self.report is not None and self.report.baseline == self.quant

    @property
    def z(self) -> float:
        """The half width of an interval, in standard errors."""
        return normal_quantile(self.budget.confidence)

    def unmeasured(self, budget: str, limit: float, what: str, task: str = "") -> BudgetResult:
        """The result of a budget without a measured value."""
        if self.is_baseline and self.found and budget in _RELATIVE:
            finding = words.gate_own_baseline(what, self.manifest, self.quant)
        else:
            evaluated = self.found is not None
            measures = _measuring_suite(budget, task)
            finding = words.gate_unmeasured(
                what, self.manifest, self.quant, self.suite, evaluated=evaluated, measures=measures
            )
        return self.result(budget, limit, "not measured", finding, task=task)

    def result(
        self, budget: str, limit: float, outcome: Outcome, finding: str, *, task: str = "", value: float | None = None,
        interval: Interval | None = None,
    ) -> BudgetResult:
        """The result; with an interval it states the confidence."""
        confidence = self.budget.confidence if interval else None
        return BudgetResult(
            quant=self.quant, budget=budget, task=task, limit=limit, value=value, interval=interval,
            confidence=confidence, outcome=outcome, finding=finding,
        )


def judge_gate_budgets(manifest: Manifest, quants: Sequence[str], suite: str, budgets: GateBudgets) -> GateReport:
    """Compare the budgets with these files of the manifest, as measured with this suite.

    Raises:
        BadRequest: a quant that is not built.
    """
    results = [
        result
        for quant in dict.fromkeys(quants)
        for result in _judge_budgets_of_file(_file_to_judge(manifest, quant, suite, budgets))
    ]
    return GateReport(
        budgets=budgets.name, sha256=budgets.sha256, suite=suite, backend=_judged_backend(manifest, suite),
        results=tuple(results),
    )  # fmt: skip


def _judged_backend(manifest: Manifest, suite: str) -> str:
    """What computed the divergences; "" where there is none, or an earlier version did not record it."""
    report = manifest.evaluations.get(suite)
    found = (m.divergence.backend for m in report.measurements if m.divergence) if report else ()
    return " / ".join(dict.fromkeys(name for name in found if name))


def _file_to_judge(manifest: Manifest, quant: str, suite: str, budgets: GateBudgets) -> _File:
    record = manifest.quants.get(quant)
    if record is None:
        built = ", ".join(manifest.quants) or "none"
        message = f"{quant} is not built; built: {built}."
        raise BadRequest(message, f"Type: make eval MODEL={words.gate_model_setting(manifest)} QUANT={quant}")
    report = manifest.evaluations.get(suite)
    of_label = [m for m in report.measurements if m.file.label == quant] if report else []
    found = next((m for m in of_label if m.file.sha256 == record.sha256), None)
    return _File(quant, manifest, suite, budgets.of(quant), report, found)


def _judge_budgets_of_file(file: _File) -> Iterator[BudgetResult]:
    for name, judge_one in _JUDGES.items():
        limit = getattr(file.budget, name)
        if limit is not None:
            yield from judge_one(file, name, limit)


# ---- one budget --------------------------------------------------------------------------------------


def _judge_ppl_change(file: _File, name: str, limit: float) -> Iterator[BudgetResult]:
    divergence = file.found.divergence if file.found else None
    ratio = divergence.ln_perplexity_ratio if divergence else None
    if divergence is None or ratio is None:
        yield _judge_unmeasured_loss(file, name, limit)
        return
    interval = estimate_interval(ratio, file.budget.confidence)
    distance = abs(math.log1p(limit / 100) - ratio.value)
    tokens = gate_sample_size(divergence.n_tokens, interval.high - interval.value, distance)
    change = mapped_interval(interval, lambda ln: 100 * math.expm1(ln))
    yield _judge_interval(file, name, limit, change, words.gate_tokens_needed(tokens, divergence.n_tokens))


def _judge_mean_kld(file: _File, name: str, budget: float | Mapping[str, float]) -> Iterator[BudgetResult]:
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
            yield _judge_unmeasured_loss(file, name, limits[key], key)


def _mean_kld_of_domain(file: _File, name: str, found: JudgedDomain) -> BudgetResult:
    half, distance = found.interval.high - found.interval.value, abs(found.limit - found.interval.value)
    needed = words.gate_domain_tokens_needed(gate_sample_size(found.n_tokens, half, distance), found.n_tokens)
    finding = words.gate_judged(name, found.what, found.interval, found.limit, found.outcome, needed)
    return file.result(
        name, found.limit, found.outcome, finding, task=found.key, value=found.interval.value, interval=found.interval
    )


def _mean_kld_of_text(file: _File, name: str, limit: float) -> BudgetResult:
    divergence = file.found.divergence if file.found else None
    kld = divergence.mean_kld if divergence else None
    if divergence is None or kld is None:
        return _judge_unmeasured_loss(file, name, limit)
    interval = estimate_interval(kld, file.budget.confidence)
    tokens = gate_sample_size(divergence.n_tokens, interval.high - interval.value, abs(limit - kld.value))
    needed = words.gate_tokens_needed(tokens, divergence.n_tokens)
    judged = _judge_interval(file, name, limit, interval, needed)
    return judged.model_copy(update={"finding": judged.finding + words.gate_divergence_parts(divergence)})


def _judge_cache_kld(file: _File, name: str, limits: Mapping[str, float]) -> Iterator[BudgetResult]:
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
        yield _judge_interval(file, name, limit, interval, needed, found.type)
    for pattern in limits:
        if pattern not in judged:
            yield file.unmeasured(name, limits[pattern], words.NAMES[name], "" if pattern == "*" else pattern)


def _judge_unmeasured_loss(file: _File, name: str, limit: float, task: str = "") -> BudgetResult:
    """The result for a file without a measured loss: it is the baseline, or it was not measured.

    Only an unquantized baseline has lost nothing; the loss of a quantized baseline is not known.
    """
    if file.is_baseline and file.found and is_unquantized_type(file.quant):
        return file.result(name, limit, "passed", words.gate_is_baseline(name), task=task, value=0.0)
    return file.unmeasured(name, limit, words.NAMES[name], task)


def _judge_accuracy(file: _File, name: str, limits: Mapping[str, float]) -> Iterator[BudgetResult]:
    """Judges every task that the suite or the budget names; "not measured" if no task could be judged."""
    judged: set[str] = set()
    for task, comparison in _tasks_to_judge(file, limits).items():
        pattern = most_specific_gate_budget(task, limits)
        if pattern is None:
            continue
        result = _accuracy_of(file, name, limits[pattern], comparison)
        judged |= {p for p in limits if result.outcome != "not judged" and most_specific_gate_budget(task, [p])}
        yield result
    for pattern in limits:
        if pattern not in judged:
            yield _judge_unmeasured_loss(file, name, limits[pattern], "" if pattern == "*" else pattern)


def _accuracy_of(file: _File, name: str, limit: float, found: Comparison) -> BudgetResult:
    if found.verdict == "no signal":
        assert file.report is not None
        finding = words.gate_no_signal(found, file.report.baseline)
        return file.result(name, limit, "not judged", finding, task=found.task)
    interval = gate_accuracy_loss(found, file.z)
    needed = gate_question_sample_size(
        found, abs(limit - interval.value) / 100, (interval.high - interval.value) / 100, file.z
    )
    return _judge_interval(
        file, name, limit, interval, words.gate_questions_needed(needed, found.n, file.suite), found.task
    )


def _judge_behaviour(file: _File, name: str, limits: Mapping[str, float]) -> Iterator[BudgetResult]:
    """Judges every behaviour that the budget names and the suite asks; "not measured" for what it does not ask."""
    judged: set[str] = set()
    for score in file.found.behaviours if file.found else ():
        pattern, found = most_specific_gate_budget(score.suite, limits), GATE_BEHAVIOURS[name](score, file.z)
        if pattern is None or found is None:
            continue
        if name == "max_behaviour_loss" and score.comparison and score.comparison.verdict == "no signal":
            assert file.report is not None
            finding = words.gate_no_signal(score.comparison, file.report.baseline)
            yield file.result(name, limits[pattern], "not judged", finding, task=score.suite)
            continue
        judged |= {p for p in limits if most_specific_gate_budget(score.suite, [p])}
        needed = gate_sample_size(score.n, found.high - found.value, abs(limits[pattern] - found.value))
        needs = words.gate_questions_needed(needed, score.n, file.suite)
        yield _judge_interval(file, name, limits[pattern], found, needs, score.suite)
    for pattern in limits:
        if pattern not in judged:
            yield _judge_unmeasured_loss(file, name, limits[pattern], "" if pattern == "*" else pattern)


def _judge_schema_rate(file: _File, name: str, limit: float) -> Iterator[BudgetResult]:
    contract = file.manifest.contracts.get(file.quant)
    rate = contract.schemas if contract else None
    if rate is None:
        finding = words.gate_no_schemas(file.manifest, file.quant, tested=contract is not None)
        yield file.result(name, limit, "not measured", finding)
        return
    interval = wilson_interval(rate.n_valid, rate.n, file.z)
    needed = gate_answer_sample_size(rate.n, interval.value, limit, file.z)
    yield _judge_interval(file, name, limit, interval, words.gate_answers_needed(needed, rate.n))


def _judge_file_size(file: _File, name: str, limit: float) -> Iterator[BudgetResult]:
    yield _judge_point(file, name, limit, file.manifest.quants[file.quant].size_bytes)


def _judge_speed(file: _File, name: str, limit: float) -> Iterator[BudgetResult]:
    speed = file.found.speed if file.found else None
    if speed is None:
        yield file.unmeasured(name, limit, words.NAMES[name])
        return
    yield _judge_point(file, name, limit, getattr(speed, name.removeprefix("min_")))


def _judge_same_tokens(file: _File, name: str, limit: float) -> Iterator[BudgetResult]:
    """A model that has no twin is not judged: it cannot be proved, and its card says so."""
    twin = file.manifest.twins.get("twin")
    if twin is None or twin.status == "unproved":
        finding = words.gate_no_twin(file.manifest, twin.finding if twin else "")
        yield file.result(name, limit, "not judged", finding)
    elif twin.status in ("proved", "known"):
        yield file.result(name, limit, "passed", twin.finding.rstrip("."))
    else:
        yield _judge_point(file, name, limit, twin.right_up_to_tokens or 0)


_Judge = Callable[..., Iterator[BudgetResult]]
# To add a budget: a row, its name in `metrics/budget_figures.py`, and its field in `budgets.GateBudget`.
_JUDGES: Final[Mapping[str, _Judge]] = {
    "max_ppl_change": _judge_ppl_change,
    "max_mean_kld": _judge_mean_kld,
    "max_cache_kld": _judge_cache_kld,
    "max_accuracy_loss": _judge_accuracy,
    **dict.fromkeys(GATE_BEHAVIOURS, _judge_behaviour),
    "min_generated_tokens_per_s": _judge_speed,
    "min_prompt_tokens_per_s": _judge_speed,
    "max_size": _judge_file_size,
    "min_schema_conformance": _judge_schema_rate,
    "min_same_tokens": _judge_same_tokens,
}
_RELATIVE: Final = frozenset({"max_ppl_change", "max_mean_kld", "max_accuracy_loss", *GATE_BEHAVIOURS})


def _measuring_suite(budget: str, task: str) -> str:
    """The smallest built-in suite that measures what a budget limits in full; `task` of a mean KLD is a domain."""
    if budget in GATE_BEHAVIOURS:
        return "behaviour"
    return {"max_cache_kld": "cache", "max_mean_kld": "domains" if task else "standard"}.get(budget, "standard")


# ---- which tasks -------------------------------------------------------------------------------------


def _tasks_to_judge(file: _File, named: Iterable[str]) -> dict[str, Comparison]:
    """One comparison per task: the suite's entries (the tasks of a group that has no score of its own), and the tasks
    that the budget names. Only shares where more is better: a perplexity is not an accuracy.
    """
    if file.found is None or file.report is None:
        return {}
    rising = {(s.task, s.metric) for s in file.found.scores if s.higher_is_better}
    shares = [c for c in file.found.comparisons if (c.task, c.metric) in rising and score_metric_kind(c) == "share"]
    by_task: dict[str, Comparison] = {}
    for comparison in sorted(shares, key=lambda c: metric_rank(c.metric)):
        by_task.setdefault(comparison.task, comparison)
    entries = {entry.task for entry in file.report.suite.tasks}
    measured = {headline_entry(s.task) for s in file.found.scores}
    wanted = {headline_entry(task) for task in by_task} if not entries <= measured else entries
    wanted |= {name for name in named if not is_gate_budget_pattern(name)}
    order = dict.fromkeys(c.task for c in shares)
    return {task: by_task[task] for task in order if headline_entry(task) in wanted or task in wanted}


# ---- limits ------------------------------------------------------------------------------------------


def _judge_interval(
    file: _File, name: str, limit: float, found: Interval | None, needed: str, task: str = ""
) -> BudgetResult:
    if found is None:
        return file.result(name, limit, "failed", words.gate_no_number(name, limit, task), task=task)
    over = name.startswith("max_")
    inside = found.high <= limit if over else found.low >= limit
    outside = found.low > limit if over else found.high < limit
    outcome: Outcome = "passed" if inside else "failed" if outside else "too few questions"
    baseline = file.report.baseline if file.report and name in _RELATIVE else ""
    against = baseline if quant_family(baseline) and not is_unquantized_type(baseline) else ""
    finding = words.gate_judged(name, task, found, limit, outcome, needed, against)
    return file.result(name, limit, outcome, finding, task=task, value=found.value, interval=found)


def _judge_point(file: _File, name: str, limit: float, value: float) -> BudgetResult:
    inside = value <= limit if name.startswith("max_") else value >= limit
    outcome: Outcome = "passed" if inside else "failed"
    return file.result(name, limit, outcome, words.gate_judged(name, "", value, limit, outcome), value=value)
