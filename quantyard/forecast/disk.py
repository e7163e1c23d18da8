"""Where the disk is too small for all files of a plan: which of them fit.

The rule: as many files as fit; among choices of as many, the most useful first, in the order of `quants.USEFUL`. What
is not in that table comes after it, in the order in which it was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from quantyard.plan.steps import BuildPlan
from quantyard.quants.catalog import rank


def files_to_choose(plan: BuildPlan, finished: Collection[str]) -> dict[str, int]:
    """What each file of the plan still takes on disk, bytes; the baseline cannot be left out and is not among them."""
    baseline = plan.measuring.baseline if plan.measuring else ""
    names = (target.quant.name for target in plan.targets if target.quant.name != baseline)
    left = [step for step in plan.steps if step.label not in finished]
    return {name: sum(step.size_bytes for step in left if step.quant == name) for name in names}


def fitting(sizes: Mapping[str, int], room_bytes: int) -> tuple[str, ...]:
    """The names of the files that fit together, in the order given; () if none does.

    Args:
        sizes: bytes that each file takes, by name.
        room_bytes: what is left for all of them.
    """
    names = list(sizes)
    n_most = _how_many([*sizes.values()], room_bytes)
    chosen: list[str] = []
    waiting = sorted(names, key=rank)
    while waiting and len(chosen) < n_most:
        name = waiting.pop(0)
        left_bytes = room_bytes - sizes[name]
        if left_bytes >= 0 and len(chosen) + 1 + _how_many([sizes[other] for other in waiting], left_bytes) >= n_most:
            chosen.append(name)
            room_bytes = left_bytes
    return tuple(name for name in names if name in chosen)


def _how_many(sizes: Sequence[int], room_bytes: int) -> int:
    """How many files fit at most: the smallest ones."""
    return sum(used <= room_bytes for used in accumulate(sorted(sizes)))
