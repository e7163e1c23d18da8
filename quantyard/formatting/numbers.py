"""How numbers are written for people: in the report, on its plots, on the card and on the page."""

from __future__ import annotations

import math
from typing import Final

from quantyard.formatting.units import human_bytes as _human_bytes

DASH: Final = "—"  # what was not measured
MINUS: Final = "\N{MINUS SIGN}"


def human_bytes(n: int) -> str:
    """105453920 → "105 MB": three digits; a dash for none."""
    return _human_bytes(n) if n > 0 else DASH


def digits(x: float, n: int = 3) -> str:
    """At least `n` significant digits, never in powers of ten: 0.00123, 1.23, 123, 1235."""
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    places = max(0, n - 1 - math.floor(math.log10(abs(float(f"{x:.{n - 1}e}")))))
    return f"{x:.{places}f}".replace("-", MINUS)


def percent(share: float, places: int = 1) -> str:
    """0.123 → "12.3 %"."""
    return f"{100 * share:.{places}f} %".replace("-", MINUS)


def signed(x: float, places: int) -> str:
    """With its sign, but for a zero."""
    text = f"{x:+.{places}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
