"""How much of the hostile cases a run tries: all of them in `make test-all`, a sample of each list otherwise.

The sample is drawn by a fixed seed, so that a change meets the same cases in every run until the list itself changes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")
WHOLE: Final = os.environ.get("HOSTILE") == "all"
_SEED: Final = 14


def sampled(cases: Sequence[T], n: int) -> list[T]:
    """`n` of the cases in their own order, for `pytest.mark.parametrize`; every one with HOSTILE=all."""
    if WHOLE or n >= len(cases):
        return list(cases)
    chosen = random.Random(_SEED).sample(range(len(cases)), n)
    return [cases[at] for at in sorted(chosen)]


def rounds(sample: int, whole: int) -> int:
    """How many inputs a fuzzer makes."""
    return whole if WHOLE else sample
