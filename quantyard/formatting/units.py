"""How sizes are written for people, on both sides."""

from __future__ import annotations


def human_bytes(n: int, *, binary: bool = False) -> str:
    """105453920 → "105 MB": three digits, in powers of 1000 as the Hub shows file sizes.

    `binary` gives the powers of 1024 ("101 MiB") in which memory is sold and limited.
    """
    step, units = (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if binary else (1000, ("B", "kB", "MB", "GB", "TB"))
    size, power = float(n), 0
    while size >= 999.5 and power < len(units) - 1:
        size, power = size / step, power + 1
    digits = 0 if power == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {units[power]}"
