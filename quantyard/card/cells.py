"""The cells of the card's tables. Intervals are 95 %."""

from __future__ import annotations

from typing import Final

from quantyard.card.escaping import SafeMarkdown, escape_markdown
from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics import intervals
from quantyard.metrics.budget_figures import metric_budget_interval, metric_budget_limit, metric_budget_value
from quantyard.metrics.kinds import score_metric_kind
from quantyard.metrics.verdicts import open_verdict_note
from quantyard.protocol.api_tests import SchemaRate
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import Comparison, Measurement, Score

NOTHING: Final = SafeMarkdown(DASH)
CONFORMANCE: Final = "answers that conform to their JSON schema"  # the head of a column


def card_size(size_bytes: int) -> SafeMarkdown:
    """The size of a file: "105 MB"."""
    return SafeMarkdown(numbers.format_file_size(size_bytes))


def card_bits(bits_per_weight: float) -> SafeMarkdown:
    """Bits per weight over all tensors of a file: "6.17"."""
    return SafeMarkdown(numbers.format_bits_per_weight(bits_per_weight))


def card_count(n: int) -> SafeMarkdown:
    """A number of questions, checks or bytes: "1,200"."""
    return SafeMarkdown(numbers.format_count(n))


def card_quality(found: Divergence | None) -> tuple[SafeMarkdown, ...]:
    """PPL, ΔPPL with its interval, mean and p99 KLD in nats, share of tokens with the same top choice."""
    if found is None:
        return (NOTHING,) * 5
    p99 = found.kld_percentiles.get("99")
    return (
        SafeMarkdown(numbers.format_perplexity(found.perplexity.value)), card_ppl_change(found),
        SafeMarkdown(numbers.format_kld(found.mean_kld.value)) if found.mean_kld else NOTHING,
        NOTHING if p99 is None else SafeMarkdown(numbers.format_kld(p99)),
        SafeMarkdown(numbers.format_percent(found.top1_agreement.value)) if found.top1_agreement else NOTHING,
    )  # fmt: skip


def card_ppl_change(found: Divergence) -> SafeMarkdown:
    """The change of perplexity from the baseline: "+5.5 % (+4.0 to +7.0)"."""
    change = intervals.ppl_change_interval(found)
    return NOTHING if change is None else SafeMarkdown(numbers.format_change_interval(change))


def card_speed(found: Measurement | None) -> tuple[SafeMarkdown, ...]:
    """Prompt and generated tokens per second, and peak resident memory."""
    if found is None or found.speed is None:
        return (NOTHING,) * 3
    s = found.speed
    rates = (SafeMarkdown(numbers.format_tokens_per_s(x)) for x in (s.prompt_tokens_per_s, s.generated_tokens_per_s))
    return (*rates, SafeMarkdown(numbers.format_memory(s.peak_memory_bytes)))


def card_memory(n_bytes: int | None) -> SafeMarkdown:
    """Memory: "216 MiB"."""
    return NOTHING if n_bytes is None else SafeMarkdown(numbers.format_memory(n_bytes))


def card_score(found: Score | None) -> SafeMarkdown:
    """One metric of one task."""
    return (
        NOTHING
        if found is None
        else SafeMarkdown(numbers.format_metric_value(found.result.value, score_metric_kind(found)))
    )


def card_score_values(found: Comparison, *, share: bool) -> tuple[SafeMarkdown, SafeMarkdown]:
    """The baseline's value and the file's, on the questions that both answered."""
    del share  # only earlier notations need it
    kind = score_metric_kind(found)
    return SafeMarkdown(numbers.format_metric_value(found.baseline, kind)), SafeMarkdown(
        numbers.format_metric_value(found.value, kind)
    )


def card_delta(found: Comparison, *, share: bool) -> SafeMarkdown:
    """The difference from the baseline, with its interval."""
    del share  # only earlier notations need it
    return SafeMarkdown(numbers.format_delta_interval(found.delta, score_metric_kind(found)))


def card_verdict(found: Comparison, chance: float | None) -> SafeMarkdown:
    """The verdict, with the questions needed or the chance level where they explain it."""
    if note := open_verdict_note(found):
        return SafeMarkdown(f"too few questions ({note})")
    if found.verdict == "no signal" and chance is not None:
        return SafeMarkdown(f"no signal (chance is {numbers.format_percent(chance)})")
    return SafeMarkdown(f"**{found.verdict}**" if found.verdict in ("worse", "better") else found.verdict)


def card_conformance(found: SchemaRate | None) -> SafeMarkdown:
    """Answers that conform to their JSON schema: "60 of 60, 100.0 % (94.0 to 100.0)"."""
    if found is None:
        return NOTHING
    rate = Interval(value=found.rate, low=found.low, high=found.high)
    return SafeMarkdown(f"{found.n_valid} of {found.n}, {numbers.format_score_interval(rate, 'share')}")


def card_budget_limit(found: BudgetResult) -> SafeMarkdown:
    """The limit of a budget, as the user wrote it, with its unit."""
    return escape_markdown(metric_budget_limit(found.budget, found.limit))


def card_budget_value(found: BudgetResult) -> SafeMarkdown:
    """The measured value that a budget is compared with."""
    return NOTHING if found.value is None else escape_markdown(metric_budget_value(found.budget, found.value))


def card_budget_interval(found: BudgetResult) -> SafeMarkdown:
    """The ends of its interval, and the confidence."""
    if found.interval is None:
        return NOTHING
    confidence = f" ({numbers.format_percent(found.confidence, 0)})" if found.confidence is not None else ""
    return escape_markdown(f"{metric_budget_interval(found.budget, found.interval).ends}{confidence}")


def card_task_name(task: str, metric: str) -> SafeMarkdown:
    """A task and its metric."""
    return SafeMarkdown(f"{escape_markdown(task, 60)} ({escape_markdown(metric, 60)})")
