"""Greedily generated texts of two runtimes, compared token by token."""

from __future__ import annotations

from collections.abc import Sequence


def share_before_difference(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of two generations, token by token, before the first that differs; 1 if none does.

    What comes after the first difference answers another text, so it is not compared.
    """
    longest = max(len(one), len(other))
    differs = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other))) / longest if longest else 1.0
