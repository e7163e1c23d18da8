"""One file as the gate judges it, and the outcome of a value or an interval beside its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from quantyard.gate import findings as words
from quantyard.gate.behaviours import GATE_BEHAVIOURS
from quantyard.gate.budgets import GateBudget
from quantyard.metrics.intervals import normal_quantile
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import BudgetResult, Outcome
from quantyard.protocol.measurements import EvalReport, Measurement
from quantyard.quants.catalog import is_unquantized_type, quant_family
from quantyard.store.manifest import Manifest

_RELATIVE: Final = frozenset({"max_ppl_change", "max_mean_kld", "max_accuracy_loss", *GATE_BEHAVIOURS})


@dataclass(frozen=True)
class JudgedFile:
    """One file, its measurements and its budgets."""

    quant: str
    manifest: Manifest
    suite: str
    budget: GateBudget
    report: EvalReport | None
    found: Measurement | None  # of the file with this SHA-256

    @property
    def is_baseline(self) -> bool:
        """Whether the others are compared with this file."""
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
        outcome: Outcome = "not judged" if budget in self.budget.only_if_measured else "not measured"
        return self.result(budget, limit, outcome, finding, task=task)

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


def _measuring_suite(budget: str, task: str) -> str:
    """The smallest built-in suite that measures what a budget limits in full; `task` of a mean KLD is a domain."""
    if budget in GATE_BEHAVIOURS:
        return "behaviour"
    return {"max_cache_kld": "cache", "max_mean_kld": "domains" if task else "standard"}.get(budget, "standard")


def judge_gate_interval(
    file: JudgedFile, name: str, limit: float, found: Interval | None, needed: str, task: str = ""
) -> BudgetResult:
    """The result of an interval beside its limit; `needed` says how many questions or tokens would decide."""
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


def judge_gate_point(file: JudgedFile, name: str, limit: float, value: float) -> BudgetResult:
    """The result of a single value beside its limit: the limit itself is allowed."""
    inside = value <= limit if name.startswith("max_") else value >= limit
    outcome: Outcome = "passed" if inside else "failed"
    return file.result(name, limit, outcome, words.gate_judged(name, "", value, limit, outcome), value=value)


def judge_unmeasured_loss(
    file: JudgedFile, name: str, limit: float, task: str = "", *, others: bool = False
) -> BudgetResult:
    """The result for a file without a measured loss: it is the baseline, or it was not measured.

    Only an unquantized baseline has lost nothing; the loss of a quantized baseline is not known.
    """
    what = words.gate_unmeasured_name(name, task, others=others)
    if file.is_baseline and file.found and is_unquantized_type(file.quant):
        return file.result(name, limit, "passed", words.gate_is_baseline(what), task=task, value=0.0)
    return file.unmeasured(name, limit, what, task)
