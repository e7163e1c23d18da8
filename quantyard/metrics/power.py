"""The smallest difference of accuracy that paired questions can show, before any is asked.

Two files answer n questions; a share f of them flips, and only flips say anything about the difference d. McNemar's
test finds it with the chance `POWER` or more where

    n·d ≥ z √(n·f) + z(POWER) √(n (f - d²)) + 1

(Connor, Biometrics 43 (1987) 207; the 1 is Edwards' correction for continuity, as the exact test is used). z is that of
the first step of Holm's correction, 5 % divided by the number of comparisons, the hardest that a p may have to pass. f
is d at least. Where nearly all flips are losses this is on the safe side. A test simulates the power.
"""

from __future__ import annotations

import math
from typing import Final

from quantyard.metrics.intervals import normal_quantile
from quantyard.protocol.estimates import CONFIDENCE

POWER: Final = 0.8  # the chance with which a verdict is to be settled
_BISECTIONS: Final = 40


def smallest_difference(n: int, flip_share: float, n_comparisons: int = 1) -> float | None:
    """The smallest true difference that is found with 80 % power, 0 to 1; None if not even a loss of all can be.

    Args:
        n: independent questions.
        flip_share: of the questions, those that one file answers right and the other wrong, if nothing differed.
        n_comparisons: how many verdicts are corrected for together.
    """
    z, z_power = normal_quantile(1 - (1 - CONFIDENCE) / max(1, n_comparisons)), normal_quantile(2 * POWER - 1)

    def is_found(delta: float) -> bool:
        flips = max(flip_share, delta)
        return n * delta >= z * math.sqrt(n * flips) + z_power * math.sqrt(n * max(0.0, flips - delta**2)) + 1

    if n < 1 or not is_found(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_found(middle) else (middle, high)
    return high
