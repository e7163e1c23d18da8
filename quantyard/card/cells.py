"""The cells of the card's tables. Intervals are 95 %."""

from __future__ import annotations

from typing import Final

from quantyard.card.escaping import Safe, text
from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics import intervals
from quantyard.metrics.budget_figures import budget_interval, budget_limit, budget_value
from quantyard.metrics.kinds import kind_of
from quantyard.protocol.api_tests import SchemaRate
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import Comparison, Divergence, Interval, Measurement, Score

NOTHING: Final = Safe(DASH)
CONFORMANCE: Final = "answers that conform to their JSON schema"  # the head of a column


def size(size_bytes: int) -> Safe:
    """Of a file: "105 MB"."""
    return Safe(numbers.file_size(size_bytes))


def bits(bits_per_weight: float) -> Safe:
    """Of a file, all tensors: "6.17"."""
    return Safe(numbers.bits_per_weight(bits_per_weight))


def count(n: int) -> Safe:
    """Of questions, checks and the like."""
    return Safe(numbers.count(n))


def quality(found: Divergence | None) -> tuple[Safe, ...]:
    """PPL, ΔPPL with its interval, mean and p99 KLD in nats, share of tokens whose first choice is the same."""
    if found is None:
        return (NOTHING,) * 5
    p99 = found.kld_percentiles.get("99")
    return (
        Safe(numbers.perplexity(found.perplexity.value)), ppl_change(found),
        Safe(numbers.kld(found.mean_kld.value)) if found.mean_kld else NOTHING,
        NOTHING if p99 is None else Safe(numbers.kld(p99)),
        Safe(numbers.percent(found.top1_agreement.value)) if found.top1_agreement else NOTHING,
    )  # fmt: skip


def ppl_change(found: Divergence) -> Safe:
    """Against the baseline: "+5.5 % (+4.0 to +7.0)"."""
    change = intervals.ppl_change(found)
    return NOTHING if change is None else Safe(numbers.change_written(change))


def speed(found: Measurement | None) -> tuple[Safe, ...]:
    """Tokens per second of the prompt and of the answer, and the peak of resident memory."""
    if found is None or found.speed is None:
        return (NOTHING,) * 3
    s = found.speed
    rates = (Safe(numbers.tokens_per_s(x)) for x in (s.prompt_tokens_per_s, s.generated_tokens_per_s))
    return (*rates, Safe(numbers.memory(s.peak_memory_bytes)))


def score(found: Score | None) -> Safe:
    """One metric of one task."""
    return NOTHING if found is None else Safe(numbers.metric_value(found.result.value, kind_of(found)))


def values(found: Comparison, *, share: bool) -> tuple[Safe, Safe]:
    """The baseline's value and the file's, of the questions that both were asked."""
    del share  # `kind_of` knows
    kind = kind_of(found)
    return Safe(numbers.metric_value(found.baseline, kind)), Safe(numbers.metric_value(found.value, kind))


def delta(found: Comparison, *, share: bool) -> Safe:
    """Against the baseline, with its interval."""
    del share  # `kind_of` knows
    return Safe(numbers.delta_written(found.delta, kind_of(found)))


def verdict(found: Comparison, chance: float | None) -> Safe:
    """In plain words."""
    if found.questions_needed:
        return Safe(f"too few questions ({numbers.forecast_count(found.questions_needed)} would do)")
    if found.verdict == "no signal" and chance is not None:
        return Safe(f"no signal (chance is {numbers.percent(chance)})")
    return Safe(f"**{found.verdict}**" if found.verdict in ("worse", "better") else found.verdict)


def conformance(found: SchemaRate | None) -> Safe:
    """Answers that conform to their JSON schema: "60 of 60, 100.0 % (94.0 to 100.0)"."""
    if found is None:
        return NOTHING
    rate = Interval(value=found.rate, low=found.low, high=found.high)
    return Safe(f"{found.n_valid} of {found.n}, {numbers.score_written(rate, 'share')}")


def limit(found: BudgetResult) -> Safe:
    """The limit of a budget as it was written, with its unit."""
    return text(budget_limit(found.budget, found.limit))


def budgeted(found: BudgetResult) -> Safe:
    """What was found of a budget."""
    return NOTHING if found.value is None else text(budget_value(found.budget, found.value))


def between(found: BudgetResult) -> Safe:
    """The ends of its interval, and how sure they are."""
    if found.interval is None:
        return NOTHING
    confidence = f" ({numbers.percent(found.confidence, 0)})" if found.confidence is not None else ""
    return text(f"{budget_interval(found.budget, found.interval).ends}{confidence}")


def task_name(task: str, metric: str) -> Safe:
    """A task and by what it is scored."""
    return Safe(f"{text(task, 60)} ({text(metric, 60)})")
