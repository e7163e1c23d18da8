"""Formats the values and limits of budgets, each in its unit, for the gate's findings, the card and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from quantyard.formatting import numbers
from quantyard.formatting.numbers import FormattedNumber
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import BudgetResult, Outcome

# The units of limits that are shown as they were typed.
_POINTS: Final = ("max_accuracy_loss", "max_behaviour_loss", "max_unfinished_increase", "max_loops_increase")
_UNITS: Final = {
    "max_ppl_change": " %", "max_length_increase": " %", "max_mean_kld": "", "max_cache_kld": "",
    **dict.fromkeys(_POINTS, " points"),
}  # fmt: skip

# What each budget limits, for people. To add a budget: add a row.
BUDGET_NAMES: Final = {
    "max_ppl_change": "change of perplexity",
    "max_mean_kld": "mean KLD",
    "max_accuracy_loss": "loss of accuracy",
    "max_cache_kld": "KLD from an f16 KV cache",
    "max_behaviour_loss": "loss of right answers",
    "max_length_increase": "increase of the answers' length",
    "max_unfinished_increase": "increase of unfinished answers",
    "max_loops_increase": "increase of answers in a loop",
    "min_generated_tokens_per_s": "speed of generation",
    "min_prompt_tokens_per_s": "speed of reading a prompt",
    "max_size": "size",
    "min_schema_conformance": "share of answers that conform to their JSON schema",
    "min_same_tokens": "length of text up to which llama.cpp computes what Transformers computes",
}
# Outcome → how readers are told it.
BUDGET_OUTCOMES: Final[dict[Outcome, str]] = {
    "failed": "missed", "not measured": "not measured", "too few questions": "undecided: too few questions",
    "passed": "met", "not judged": "not judged",
}  # fmt: skip


def metric_budget_name(budget: str) -> str:
    """What a budget limits; its own name if this version does not know it."""
    return BUDGET_NAMES.get(budget, budget)


def metric_budget_value(budget: str, x: float) -> str:
    """A value in the budget's own unit: per cent, points, nats, bytes, a share, tokens per second."""
    if budget in ("max_ppl_change", "max_length_increase"):
        return numbers.format_change(x / 100)
    if budget in _POINTS:
        return f"{numbers.format_signed(x, 1)} points"
    if budget == "max_size":
        return f"{numbers.format_bytes(int(x))} ({numbers.format_exact_bytes(int(x))})"
    if budget == "min_schema_conformance":
        return numbers.format_percent(x)
    if budget == "min_same_tokens":
        return f"{numbers.format_count(int(x))} token{'s' * (x != 1)}"
    return numbers.format_speed(x) if budget.endswith("_per_s") else numbers.format_kld(x)


def metric_budget_interval(budget: str, found: Interval) -> FormattedNumber:
    """A value with its interval."""
    if budget in ("max_ppl_change", "max_length_increase"):
        share = Interval(value=found.value / 100, low=found.low / 100, high=found.high / 100)
        return numbers.format_change_interval(share)
    low, high = (metric_budget_value(budget, x).partition(" ")[0] for x in (found.low, found.high))
    return FormattedNumber(metric_budget_value(budget, found.value), low, high)


def metric_budget_limit(budget: str, x: float) -> str:
    """The limit, as the user wrote it."""
    if budget in ("max_size", "min_schema_conformance", "min_same_tokens"):
        return metric_budget_value(budget, x)
    return f"{numbers.format_as_written(x)}{_UNITS.get(budget, ' tokens/s')}"


def missed_limit(found: BudgetResult) -> str:
    """A value beside the limit that it misses: "change of perplexity +0.75 %, limit 0.3 %"."""
    value = "" if found.value is None else f" {metric_budget_value(found.budget, found.value)}"
    task = f" on {found.task}" if found.task else ""
    return f"{metric_budget_name(found.budget)}{task}{value}, limit {metric_budget_limit(found.budget, found.limit)}"


def limits_sentence(results: Sequence[BudgetResult]) -> str:
    """How many limits are met: "1 of 10 quality limits missed, 3 undecided, 2 not measured"."""
    counts = Counter(result.outcome for result in results if result.outcome != "not judged")
    total = sum(counts.values())
    if counts["passed"] == total:
        return "The quality limit is met" if total == 1 else f"All {numbers.format_count(total)} quality limits are met"
    named = (
        (counts["failed"], "missed"),
        (counts["too few questions"], "undecided"),
        (counts["not measured"], "not measured"),
    )
    (first, outcome), *rest = [(n, outcome) for n, outcome in named if n]
    more = "".join(f", {numbers.format_count(n)} {outcome}" for n, outcome in rest)
    limits = "quality limits" if total > 1 else "quality limit"
    return f"{numbers.format_count(first)} of {numbers.format_count(total)} {limits} {outcome}{more}"
