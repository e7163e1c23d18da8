"""Finds generations that end in a loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

_LOOP_TOKENS: Final = 40  # at least so many at the end repeat themselves …
_LOOP_PERIODS: Final = 4  # … so many times
_LONGEST_PERIOD: Final = 256  # tokens


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Whether the last 40 tokens or more are one sequence again and again, four times at least."""
    ids = np.asarray(tokens, np.int64)
    for period in range(1, min(len(ids) // _LOOP_PERIODS, _LONGEST_PERIOD) + 1):
        span = max(_LOOP_PERIODS * period, _LOOP_TOKENS)
        if span <= len(ids) and np.array_equal(ids[len(ids) - span + period :], ids[len(ids) - span : -period]):
            return True
    return False
