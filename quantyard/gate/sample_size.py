"""The intervals that the gate judges, at its own confidence, and how many questions would bring one within a limit.

`z` is how many standard errors an interval reaches to each side: 1.96 for a confidence of 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from quantyard.metrics.intervals import Z
from quantyard.protocol.evaluation import Comparison, Interval


def accuracy_loss(found: Comparison, z: float) -> Interval:
    """Points lost, -100 to 100. The comparison's own 95 % interval, wider or narrower as z is than its 1.96: exact
    for a confidence of 95 %, near enough for others.
    """
    value, scale = 0.0 - 100 * found.delta.value, z / Z  # 0.0 -: no -0
    low = value - 100 * scale * (found.delta.high - found.delta.value)
    high = value + 100 * scale * (found.delta.value - found.delta.low)
    return Interval(value=value, low=max(low, -100.0), high=min(high, 100.0))


def mapped(found: Interval, function: Callable[[float], float]) -> Interval | None:
    """The interval in another unit, by a rising function; None where that leaves the range of numbers."""
    try:
        value, low, high = (function(x) for x in (found.value, found.low, found.high))
    except OverflowError:
        return None
    return Interval(value=value, low=low, high=high) if math.isfinite(high) else None


def wilson(right: int, n: int, z: float) -> Interval:
    """Wilson's score interval for a share; all of 0 to 1 where nothing was asked."""
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0)
    p, spread = right / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / spread
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / spread
    return Interval(value=p, low=min(p, max(0.0, centre - half)), high=max(p, min(1.0, centre + half)))


def more(n: int, half: float, distance: float) -> int | None:
    """How many would bring the half width down to the distance from the limit; None where it is none."""
    return max(n + 1, math.ceil(n * (half / distance) ** 2)) if distance > 0 and math.isfinite(half) else None


def more_answers(n: int, share: float, limit: float, z: float) -> int | None:
    """The same for Wilson's interval: it ends at the limit when z of the limit's own standard errors do."""
    if share == limit or not 0 < limit < 1:
        return None
    return max(n + 1, math.ceil(limit * (1 - limit) * (z / (share - limit)) ** 2))


def more_questions(found: Comparison, distance: float, half: float, z: float) -> int | None:
    """The same for accuracies. With few flips Tango's interval shrinks faster than 1/√n: its half width is near
    z √(v/m + z²/m²) / (1 + z²/m) for m questions with the flips' variance v, which is solved for m here.
    """
    if found.mcnemar_p is None or not 0 < distance < 1:
        return more(found.n, half, distance)
    variance = (found.lost + found.gained) / found.n - found.delta.value**2
    a = variance - 2 * distance**2
    m = z * z * (a + math.sqrt(a * a + 4 * distance**2 * (1 - distance**2))) / (2 * distance**2)
    return max(found.n + 1, math.ceil(m))
