"""How numbers are written for people: in the terminal, the report, the plots, the card, the page and the gate."""

from __future__ import annotations

import math
from typing import Final

DASH: Final = "—"  # what was not measured
MINUS: Final = "\N{MINUS SIGN}"


def human_bytes(n: int, *, binary: bool = False) -> str:
    """105453920 → "105 MB": three digits, in powers of 1000 as the Hub shows file sizes.

    `binary` gives the powers of 1024 ("101 MiB") in which memory is sold and limited.
    """
    step, units = (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if binary else (1000, ("B", "kB", "MB", "GB", "TB"))
    size, power = float(n), 0
    while size >= 999.5 and power < len(units) - 1:
        size, power = size / step, power + 1
    places = 0 if power == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{places}f} {units[power]}"


def file_size(n: int) -> str:
    """105453920 → "105 MB"; a dash where it is not known, which is 0."""
    return human_bytes(n) if n > 0 else DASH


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
