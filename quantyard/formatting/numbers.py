"""How numbers are written for people: one rule for each kind of figure, wherever it is shown.

The terminal, the report and its plots, the card, the page and the gate all write their numbers here, so a figure has
the same text everywhere. Annotations, which programs read, are written by `format_for_machine`.

| figure | rule | text |
|---|---|---|
| size of a file | powers of 1000, as the Hub shows it | 105 MB |
| memory | powers of 1024, as it is sold and limited | 101 MiB |
| accuracy, agreement, other shares | per cent, one decimal | 78.1 % |
| difference of shares | points, one decimal | +0.6 |
| perplexity | four digits | 12.35 |
| change of perplexity or of bits per byte | per cent; two decimals below 10 % | +1.23 %, +12.3 % |
| KL divergence | three digits, nats | 0.0464 |
| speed | three digits, tokens per second | 61.2 tokens/s |
| difference of two computations | two digits; below a millionth only that | 0.000023, < 0.000001 |
| time | seconds, minutes or hours; what was timed in tenths of a second | 42 s, 10 min; 10.2 s |
| time of what runs | a clock, and what is left as a time | elapsed 0:58 · about 4 min left |
| bits per weight | two decimals | 6.17 |
| other metrics | four digits; a difference as its interval resolves it | 31.25, +0.012 |
| interval | its ends, with the unit of the value before them | 0.0464 (0.0446 to 0.0483) |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, Protocol

DASH: Final = "—"  # what was not measured
MINUS: Final = "\N{MINUS SIGN}"
_LEAST: Final = 1e-6  # difference that is worth telling
# How a metric's values and differences are told: as shares, by relative change, or in the metric's own unit.
Kind = Literal["share", "relative", "own unit"]


class Span(Protocol):
    """A value and its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class FormattedNumber:
    """A value with its unit, and the ends of its interval without: "+1.23 % (+0.31 to +2.15)"."""

    value: str
    low: str
    high: str

    @property
    def ends(self) -> str:
        """The interval alone."""
        return f"{self.low} to {self.high}"

    def __str__(self) -> str:
        return f"{self.value} ({self.ends})"


# ---- sizes -------------------------------------------------------------------------------------------


def format_bytes(n: int, *, binary: bool = False) -> str:
    """105453920 → "105 MB": three digits, in powers of 1000; `binary`: in powers of 1024, "101 MiB"."""
    step, units = (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if binary else (1000, ("B", "kB", "MB", "GB", "TB"))
    size, power = float(n), 0
    while size >= 999.5 and power < len(units) - 1:
        size, power = size / step, power + 1
    places = 0 if power == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{places}f} {units[power]}"


def format_file_size(n: int) -> str:
    """105453920 → "105 MB"; a dash where it is not known, which is 0."""
    return format_bytes(n) if n > 0 else DASH


def format_memory(n: int) -> str:
    """105453920 → "101 MiB"."""
    return format_bytes(n, binary=True)


def format_fact(name: str, value: object) -> str:
    """A fact of a machine by its name: memory_bytes=25300000000 → "memory 23.6 GiB"; others as they are."""
    if name.endswith("_bytes") and isinstance(value, int):
        what = name.removesuffix("_bytes").replace("_", " ")
        return f"{what} {format_memory(value) if what == 'memory' else format_bytes(value)}"
    return f"{name.replace('_', ' ')} {value}"


def format_exact_bytes(n: int) -> str:
    """105453920 → "105,453,920 bytes"."""
    return f"{n:,} bytes"


def format_bits_per_weight(x: float) -> str:
    """6.1712 → "6.17"; a dash where it is not known, which is 0."""
    return f"{x:.2f}" if x else DASH


# ---- counts and times --------------------------------------------------------------------------------


def format_count(n: int) -> str:
    """12345 → "12,345"."""
    return f"{n:,}"


def format_context(tokens: int) -> str:
    """A context in short: 8192 → "8k"; as a count where it is not a whole number of 1024 tokens."""
    return f"{format_count(tokens // 1024)}k" if tokens and tokens % 1024 == 0 else f"{format_count(tokens)} tokens"


def format_weight_count(n: int) -> str:
    """1100048384 → "1.10 B"; millions ("135 M") below a billion."""
    return f"{format_digits(n / 1e9)} B" if n >= 999_500_000 else f"{format_digits(n / 1e6)} M"


def format_forecast_count(n: int) -> str:
    """12345 → "13,000": rounded up to two digits, which is all that a forecast deserves."""
    step = 10 ** max(0, len(str(n)) - 2)
    return format_count(-(-n // step) * step)


def format_elapsed(seconds: float) -> str:
    """What something took: tenths of a second below 90 s, then as `format_duration`."""
    return f"{seconds:.1f} s" if seconds < 90 else format_duration(seconds)


def format_duration(seconds: float) -> str:
    """What something will take, or took in all: in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_clock(seconds: float) -> str:
    """What has passed, as a clock: "0:58", "1:02:03"."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def format_running(elapsed_s: float, left_s: float | None = None) -> str:
    """Of what runs: "elapsed 0:58 · about 4 min left"; `left_s` None: not known."""
    elapsed = f"elapsed {format_clock(elapsed_s)}"
    return elapsed if left_s is None else f"{elapsed} · about {format_duration(max(1.0, left_s))} left"


# ---- what was measured -------------------------------------------------------------------------------


def format_perplexity(x: float) -> str:
    """12.3456 → "12.35"."""
    return format_digits(x, 4)


def format_kld(nats: float) -> str:
    """0.046412 → "0.0464"."""
    return format_digits(nats)


def format_cosine(x: float) -> str:
    """Of two embeddings, or a correlation: 0.99973 → "0.9997"."""
    return f"{x:.4f}".replace("-", MINUS)


def format_tokens_per_s(x: float) -> str:
    """61.234 → "61.2", without the unit."""
    return format_digits(x)


def format_speed(tokens_per_s: float) -> str:
    """61.234 → "61.2 tokens/s"."""
    return f"{format_tokens_per_s(tokens_per_s)} tokens/s"


def format_percent(share: float, places: int = 1) -> str:
    """0.123 → "12.3 %"."""
    return f"{100 * share:.{places}f} %".replace("-", MINUS)


def format_rough_percent(share: float) -> str:
    """How much larger, smaller or faster: 0.045 → "4.5 %", 0.314 → "31 %"."""
    return f"{format_digits(100 * share, 2 if abs(share) < 0.1 else 1)} %"


def format_change(share: float) -> str:
    """A relative change alone: 0.0123 → "+1.23 %"."""
    return f"{format_signed(100 * share, _decimals_of_change(share))} %"


def format_margin(share: float) -> str:
    """The difference that counts as none, as the suite has it: 0.01 → "1 %"."""
    return f"{format_as_written(100 * share)} %"


def format_p_value(p: float) -> str:
    """0.0004 → "< 0.001"; three decimals below 0.1, else two."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def format_metric_value(x: float, kind: Kind) -> str:
    """A value of a task's metric."""
    return format_percent(x) if kind == "share" else format_digits(x, 4)


# ---- with their intervals ----------------------------------------------------------------------------


def format_change_interval(found: Span) -> FormattedNumber:
    """A relative change, such as that of perplexity: "+1.23 % (+0.31 to +2.15)"."""
    return _signed_written(found, 100, _decimals_of_change(found.value), " %")


def format_delta_interval(found: Span, kind: Kind) -> FormattedNumber:
    """The difference of a metric from the baseline's: points of shares, the change of perplexities, else as it is."""
    if kind == "share":
        return _signed_written(found, 100, 1, "")
    if kind == "relative":
        return format_change_interval(found)
    largest = max(abs(found.low), abs(found.high), 1e-9)
    return _signed_written(found, 1, max(0, 1 - math.floor(math.log10(largest))), "")


def format_score_interval(found: Span, kind: Kind) -> FormattedNumber:
    """The value of a metric: "78.1 % (75.0 to 81.0)"."""
    value, low, high = (format_metric_value(x, kind) for x in (found.value, found.low, found.high))
    return FormattedNumber(value, low.removesuffix(" %"), high.removesuffix(" %"))


def format_kld_interval(found: Span) -> FormattedNumber:
    """A KL divergence: "0.0464 (0.0446 to 0.0483)"."""
    return FormattedNumber(format_kld(found.value), format_kld(found.low), format_kld(found.high))


# ---- the parts ---------------------------------------------------------------------------------------


def format_digits(x: float, n: int = 3) -> str:
    """At least `n` significant digits, never in powers of ten: 0.00123, 1.23, 123, 1235."""
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    places = max(0, n - 1 - math.floor(math.log10(abs(float(f"{x:.{n - 1}e}")))))
    return f"{x:.{places}f}".replace("-", MINUS)


def format_difference(x: float) -> str:
    """How far two computations of the same are apart, with two digits; what is less than a millionth says only that."""
    return f"< {_LEAST:.6f}" if 0 < x < _LEAST else format_digits(x, 2)


def format_signed(x: float, places: int) -> str:
    """With its sign, but for a zero."""
    text = f"{x:+.{places}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def format_as_written(x: float) -> str:
    """A limit as somebody wrote it: 5.0 → "5", 0.05 → "0.05"."""
    text = f"{x:.6f}".rstrip("0").rstrip(".")
    return text if float(text) or x == 0 else f"{x:g}"


def format_axis_label(x: float) -> str:
    """A round value at the tick of an axis; what is 0 but for the arithmetic is 0."""
    return f"{x:.6g}".replace("-", MINUS) if abs(x) > 1e-12 else "0"


def format_for_machine(x: float) -> str:
    """Six digits with the minus that programs read: enough for people's rules to write the same figure from it."""
    text = format_digits(x, 6).replace(MINUS, "-")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decimals_of_change(share: float) -> int:
    """Small ones need more."""
    return 1 if abs(share) >= 0.1 else 2


def _signed_written(found: Span, scale: float, places: int, unit: str) -> FormattedNumber:
    value, low, high = (format_signed(scale * x, places) for x in (found.value, found.low, found.high))
    return FormattedNumber(f"{value}{unit}", low, high)
