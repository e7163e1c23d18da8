"""The intervals that the gate judges, at its own confidence, and the number of questions that would decide.

`z` is the half width of an interval in standard errors: 1.96 for a confidence of 95 %.
"""

from __future__ import annotations

import math

from quantyard.metrics.intervals import Z
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import Comparison


def gate_accuracy_loss(found: Comparison, z: float) -> Interval:
    """Points lost, -100 to 100: the comparison's 95 % interval, scaled by z / 1.96. Exact for a confidence of 95 %,
    approximate for others.
    """
    value, scale = 0.0 - 100 * found.delta.value, z / Z  # 0.0 - x is never -0.0
    low = value - 100 * scale * (found.delta.high - found.delta.value)
    high = value + 100 * scale * (found.delta.value - found.delta.low)
    return Interval(value=value, low=max(low, -100.0), high=min(high, 100.0))


def gate_sample_size(n: int, half: float, distance: float) -> int | None:
    """The sample size at which the half width equals the distance from the limit; None if the distance is zero."""
    return max(n + 1, math.ceil(n * (half / distance) ** 2)) if distance > 0 and math.isfinite(half) else None


def gate_answer_sample_size(n: int, share: float, limit: float, z: float) -> int | None:
    """The same for Wilson's interval, which ends at the limit p where |share - p| = z √(p (1 - p) / n)."""
    if share == limit or not 0 < limit < 1:
        return None
    return max(n + 1, math.ceil(limit * (1 - limit) * (z / (share - limit)) ** 2))


def gate_question_sample_size(found: Comparison, distance: float, half: float, z: float) -> int | None:
    """The same for accuracies. With few flips Tango's interval shrinks faster than 1/√n: its half width is near
    z √(v/m + z²/m²) / (1 + z²/m) for m questions with the flips' variance v, which is solved for m here.
    """
    if found.mcnemar_p is None or not 0 < distance < 1:
        return gate_sample_size(found.n, half, distance)
    variance = (found.lost + found.gained) / found.n - found.delta.value**2
    a = variance - 2 * distance**2
    m = z * z * (a + math.sqrt(a * a + 4 * distance**2 * (1 - distance**2))) / (2 * distance**2)
    return max(found.n + 1, math.ceil(m))
