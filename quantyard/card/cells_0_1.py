"""The cells of the card's tables as version 0.1.0 wrote them: only to verify cards that it wrote. Never changed but for
the names that `tables.py` calls.
"""

from __future__ import annotations

import math
from typing import Final

from quantyard.card.escaping import SafeMarkdown, escape_markdown
from quantyard.formatting.numbers import DASH, format_bytes, format_digits, format_percent, format_signed
from quantyard.metrics import intervals
from quantyard.protocol.api_tests import SchemaRate
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import Comparison, Measurement, Score

NOTHING: Final = SafeMarkdown(DASH)
CONFORMANCE: Final = "answers that keep to their JSON schema"


def card_size(size_bytes: int) -> SafeMarkdown:
    """Of a file: "105 MB"."""
    return SafeMarkdown(format_bytes(size_bytes))


def card_bits(bits_per_weight: float) -> SafeMarkdown:
    """Of a file, all tensors: "6.17"."""
    return SafeMarkdown(f"{bits_per_weight:.2f}") if bits_per_weight else NOTHING


def card_count(n: int) -> SafeMarkdown:
    """Of questions, checks and the like."""
    return SafeMarkdown(f"{n:,}")


def card_quality(found: Divergence | None) -> tuple[SafeMarkdown, ...]:
    """PPL, ΔPPL with its interval, mean and p99 KLD in nats, share of tokens whose first choice is the same."""
    if found is None:
        return (NOTHING,) * 5
    p99 = found.kld_percentiles.get("99")
    return (
        SafeMarkdown(format_digits(found.perplexity.value, 4)), card_ppl_change(found),
        SafeMarkdown(format_digits(found.mean_kld.value)) if found.mean_kld else NOTHING,
        NOTHING if p99 is None else SafeMarkdown(format_digits(p99)),
        SafeMarkdown(format_percent(found.top1_agreement.value)) if found.top1_agreement else NOTHING,
    )  # fmt: skip


def card_ppl_change(found: Divergence) -> SafeMarkdown:
    """Against the baseline: "+5.5 ± 1.5 %"."""
    change = intervals.ppl_change_interval(found)
    if change is None:
        return NOTHING
    places = 1 if abs(change.value) >= 0.01 else 2
    return SafeMarkdown(f"{format_signed(100 * change.value, places)} ± {50 * (change.high - change.low):.{places}f} %")


def card_speed(found: Measurement | None) -> tuple[SafeMarkdown, ...]:
    """Tokens per second of the prompt and of the answer, and the peak of resident memory."""
    if found is None or found.speed is None:
        return (NOTHING,) * 3
    s = found.speed
    rates = (SafeMarkdown(format_digits(s.prompt_tokens_per_s)), SafeMarkdown(format_digits(s.generated_tokens_per_s)))
    return (*rates, SafeMarkdown(format_bytes(s.peak_memory_bytes)))


def card_score(found: Score | None) -> SafeMarkdown:
    """One metric of one task: per cent where it is a share of right answers."""
    return NOTHING if found is None else _card_value_0_1(found.result.value, share=found.higher_is_better)


def card_score_values(found: Comparison, *, share: bool) -> tuple[SafeMarkdown, SafeMarkdown]:
    """The baseline's value and the file's, of the questions that both were asked."""
    return _card_value_0_1(found.baseline, share=share), _card_value_0_1(found.value, share=share)


def card_delta(found: Comparison, *, share: bool) -> SafeMarkdown:
    """Against the baseline: points for shares, per cent for perplexities, else the metric's own unit."""
    if _is_card_relative_0_1(found.metric):
        return _card_spread_0_1(found.delta, 100, 2 if abs(found.delta.value) < 0.01 else 1, " %")
    if share and _is_card_share_0_1(found.value) and _is_card_share_0_1(found.baseline):
        return _card_spread_0_1(found.delta, 100, 1, "")
    width = max(abs(found.delta.low), abs(found.delta.high), 1e-9)
    return _card_spread_0_1(found.delta, 1, max(0, 1 - math.floor(math.log10(width))), "")


def card_verdict(found: Comparison, chance: float | None) -> SafeMarkdown:
    """The verdict of a comparison, with the number of questions it would need."""
    if found.questions_needed:
        return SafeMarkdown(f"too few questions ({_card_rounded_up_0_1(found.questions_needed)} would do)")
    if found.verdict == "no signal" and chance is not None:
        return SafeMarkdown(f"no signal (chance is {format_percent(chance)})")
    return SafeMarkdown(f"**{found.verdict}**" if found.verdict in ("worse", "better") else found.verdict)


def card_conformance(found: SchemaRate | None) -> SafeMarkdown:
    """Answers that keep to their JSON schema: "60 of 60 (94.0 to 100.0 %)"."""
    if found is None:
        return NOTHING
    return SafeMarkdown(f"{found.n_valid} of {found.n} ({100 * found.low:.1f} to {100 * found.high:.1f} %)")


def card_budget_limit(found: BudgetResult) -> SafeMarkdown:
    """A budget as somebody wrote it."""
    x = found.limit
    return SafeMarkdown(f"{x:.0f}" if float(x).is_integer() else f"{x:g}")


def card_budget_value(found: BudgetResult) -> SafeMarkdown:
    """What was found of a budget, in the budget's own unit."""
    return NOTHING if found.value is None else _card_number_0_1(found.value)


def card_budget_interval(found: BudgetResult) -> SafeMarkdown:
    """The ends of its interval, and how sure they are."""
    if found.interval is None:
        return NOTHING
    ends = f"{_card_number_0_1(found.interval.low)} to {_card_number_0_1(found.interval.high)}"
    return SafeMarkdown(ends if found.confidence is None else f"{ends} ({100 * found.confidence:g} %)")


def card_task_name(task: str, metric: str) -> SafeMarkdown:
    """A task and by what it is scored."""
    return SafeMarkdown(f"{escape_markdown(task, 60)} ({escape_markdown(metric, 60)})")


def _card_value_0_1(x: float, *, share: bool) -> SafeMarkdown:
    return SafeMarkdown(format_percent(x) if share and _is_card_share_0_1(x) else format_digits(x, 4))


def _is_card_share_0_1(x: float) -> bool:
    return 0 <= x <= 1


def _is_card_relative_0_1(metric: str) -> bool:
    name = metric.split(",", maxsplit=1)[0]
    return name.endswith("perplexity") or name == "bits_per_byte"


def _card_spread_0_1(interval: Interval, scale: float, places: int, unit: str) -> SafeMarkdown:
    value, low, high = (format_signed(scale * x, places) for x in (interval.value, interval.low, interval.high))
    return SafeMarkdown(f"{value}{unit} ({low} to {high})")


def _card_rounded_up_0_1(n: int) -> str:
    """Two digits are all that such a forecast deserves."""
    step = 10 ** max(0, len(str(n)) - 2)
    return f"{math.ceil(n / step) * step:,}"


def _card_number_0_1(x: float) -> SafeMarkdown:
    return SafeMarkdown(f"{x:.0f}" if float(x).is_integer() else format_digits(x))
