"""Chooses the files of a plan that fit a disk which is too small for all of them.

The rule: as many files as fit; among choices of the same number the most useful files, in the order of `quants.USEFUL`.
Quants that are not in that table come last, in the order in which they were asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from quantyard.plan.steps import BuildPlan
from quantyard.quants.catalog import quant_rank


def forecast_disk_bytes(plan: BuildPlan, finished: Collection[str]) -> dict[str, int]:
    """The disk that each file of the plan still needs, bytes; without the baseline, which cannot be left out."""
    baseline = plan.measuring.baseline if plan.measuring else ""
    names = (target.quant.name for target in plan.targets if target.quant.name != baseline)
    left = [step for step in plan.steps if step.label not in finished]
    return {name: sum(step.size_bytes for step in left if step.quant == name) for name in names}


def forecast_fitting_files(sizes: Mapping[str, int], free_bytes: int) -> tuple[str, ...]:
    """The names of the files that fit together, in the order given; () if not even one fits.

    Args:
        sizes: bytes that each file takes, by name.
        free_bytes: the disk that is left for all of them.
    """
    names = list(sizes)
    n_most = _how_many_files_fit_disk([*sizes.values()], free_bytes)
    chosen: list[str] = []
    waiting = sorted(names, key=quant_rank)
    while waiting and len(chosen) < n_most:
        name = waiting.pop(0)
        left_bytes = free_bytes - sizes[name]
        if (
            left_bytes >= 0
            and len(chosen) + 1 + _how_many_files_fit_disk([sizes[other] for other in waiting], left_bytes) >= n_most
        ):
            chosen.append(name)
            free_bytes = left_bytes
    return tuple(name for name in names if name in chosen)


def _how_many_files_fit_disk(sizes: Sequence[int], free_bytes: int) -> int:
    """How many files fit at most: the smallest ones."""
    return sum(used <= free_bytes for used in accumulate(sorted(sizes)))
