"""The cells of the card's tables: every number as it is written there. Intervals are 95 %."""

from __future__ import annotations

import math
from typing import Final

from quantyard.card.escaping import Safe, text
from quantyard.formatting.numbers import DASH, digits, file_size, human_bytes, percent, signed
from quantyard.metrics import intervals
from quantyard.protocol.api_tests import SchemaRate
from quantyard.protocol.evaluation import Comparison, Divergence, Interval, Measurement, Score

NOTHING: Final = Safe(DASH)


def size(size_bytes: int) -> Safe:
    """Of a file: "105 MB"."""
    return Safe(file_size(size_bytes))


def bits(bits_per_weight: float) -> Safe:
    """Of a file, all tensors: "6.17"."""
    return Safe(f"{bits_per_weight:.2f}") if bits_per_weight else NOTHING


def quality(found: Divergence | None) -> tuple[Safe, ...]:
    """PPL, ΔPPL with its interval, mean and p99 KLD in nats, share of tokens whose first choice is the same."""
    if found is None:
        return (NOTHING,) * 5
    p99 = found.kld_percentiles.get("99")
    return (
        Safe(digits(found.perplexity.value, 4)), ppl_change(found),
        Safe(digits(found.mean_kld.value)) if found.mean_kld else NOTHING,
        NOTHING if p99 is None else Safe(digits(p99)),
        Safe(percent(found.top1_agreement.value)) if found.top1_agreement else NOTHING,
    )  # fmt: skip


def ppl_change(found: Divergence) -> Safe:
    """Against the baseline: "+5.5 ± 1.5 %"."""
    change = intervals.ppl_change(found)
    if change is None:
        return NOTHING
    places = 1 if abs(change.value) >= 0.01 else 2
    return Safe(f"{signed(100 * change.value, places)} ± {50 * (change.high - change.low):.{places}f} %")


def speed(found: Measurement | None) -> tuple[Safe, ...]:
    """Tokens per second of the prompt and of the answer, and the peak of resident memory."""
    if found is None or found.speed is None:
        return (NOTHING,) * 3
    s = found.speed
    rates = (Safe(digits(s.prompt_tokens_per_s)), Safe(digits(s.generated_tokens_per_s)))
    return (*rates, Safe(human_bytes(s.peak_memory_bytes)))


def score(found: Score | None) -> Safe:
    """One metric of one task: per cent where it is a share of right answers."""
    return NOTHING if found is None else _value(found.result.value, share=found.higher_is_better)


def delta(found: Comparison, *, share: bool) -> Safe:
    """Against the baseline: points for shares, per cent for perplexities, else the metric's own unit."""
    if _is_relative(found.metric):
        return _spread(found.delta, 100, 2 if abs(found.delta.value) < 0.01 else 1, " %")
    if share and _is_share(found.value) and _is_share(found.baseline):
        return _spread(found.delta, 100, 1, "")
    width = max(abs(found.delta.low), abs(found.delta.high), 1e-9)
    return _spread(found.delta, 1, max(0, 1 - math.floor(math.log10(width))), "")


def verdict(found: Comparison, chance: float | None) -> Safe:
    """In plain words."""
    if found.questions_needed:
        return Safe(f"too few questions ({_rounded_up(found.questions_needed)} would do)")
    if found.verdict == "no signal" and chance is not None:
        return Safe(f"no signal (chance is {percent(chance)})")
    return Safe(f"**{found.verdict}**" if found.verdict in ("worse", "better") else found.verdict)


def conformance(found: SchemaRate | None) -> Safe:
    """Answers that keep to their JSON schema: "60 of 60 (94.0 to 100.0 %)"."""
    if found is None:
        return NOTHING
    return Safe(f"{found.n_valid} of {found.n} ({100 * found.low:.1f} to {100 * found.high:.1f} %)")


def plain(x: float | None) -> Safe:
    """What was found of a budget, in the budget's own unit."""
    if x is None:
        return NOTHING
    return Safe(f"{x:.0f}" if float(x).is_integer() else digits(x))


def limit(x: float) -> Safe:
    """A budget as somebody wrote it."""
    return Safe(f"{x:.0f}" if float(x).is_integer() else f"{x:g}")


def between(interval: Interval | None) -> Safe:
    """The ends of an interval."""
    return NOTHING if interval is None else Safe(f"{plain(interval.low)} to {plain(interval.high)}")


def task_name(task: str, metric: str) -> Safe:
    """A task and by what it is scored."""
    return Safe(f"{text(task, 60)} ({text(metric, 60)})")


def _value(x: float, *, share: bool) -> Safe:
    return Safe(percent(x) if share and _is_share(x) else digits(x, 4))


def _is_share(x: float) -> bool:
    return 0 <= x <= 1


def _is_relative(metric: str) -> bool:
    name = metric.split(",", maxsplit=1)[0]
    return name.endswith("perplexity") or name == "bits_per_byte"


def _spread(interval: Interval, scale: float, places: int, unit: str) -> Safe:
    value, low, high = (signed(scale * x, places) for x in (interval.value, interval.low, interval.high))
    return Safe(f"{value}{unit} ({low} to {high})")


def _rounded_up(n: int) -> str:
    """Two digits are all that such a forecast deserves."""
    step = 10 ** max(0, len(str(n)) - 2)
    return f"{math.ceil(n / step) * step:,}"
