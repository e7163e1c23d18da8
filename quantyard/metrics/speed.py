"""How fast one file is beside another: a statement only where the runs' own spread allows it."""

from __future__ import annotations

from typing import Final

from quantyard.formatting.numbers import format_digits
from quantyard.protocol.estimates import Interval
from quantyard.protocol.speed_results import Speed

_LEAST_RUNS: Final = 3  # below, there is no spread to hold a difference against


def pace_sentence(found: Speed | None, baseline: Speed | None, label: str) -> str:
    """How fast a file generates beside the baseline in this run; "" if it cannot be told."""
    if not (found and baseline and baseline.generated_tokens_per_s > 0):
        return ""
    if found.generation_pace is not None:
        return _paired_pace_sentence(found.generation_pace, label)
    if min(found.settings.repeats, baseline.settings.repeats) < _LEAST_RUNS:
        return ""
    (low, high), (base_low, base_high) = _speed_range(found), _speed_range(baseline)
    if base_low <= 0 or (low <= base_high and base_low <= high):
        return f"Generates as fast as {label}, within the spread of the runs."
    slowest, fastest = (format_digits(x, 2) for x in (low / base_high, high / base_low))
    times = slowest if slowest == fastest else f"{slowest} to {fastest}"
    return f"Generated {times} times as many tokens per second as {label} in these runs."


def _paired_pace_sentence(pace: Interval, label: str) -> str:
    """From runs by turns: what slowed one down slowed the other too."""
    if pace.low <= 1 <= pace.high:
        return f"Generates as fast as {label}, within the interval of runs by turns."
    value, low, high = (format_digits(x, 2) for x in (pace.value, pace.low, pace.high))
    return f"Generates {value} times ({low} to {high}) as many tokens per second as {label}, timed by turns."


def _speed_range(found: Speed) -> tuple[float, float]:
    """The slowest and the fastest run, by the spread around the median."""
    half = found.generated_tokens_per_s * found.generated_spread / 2
    return found.generated_tokens_per_s - half, found.generated_tokens_per_s + half
