"""Chooses a type for each group: the least divergence for a size, or the least size for a divergence.

The divergence of a mix is taken as the sum of its groups' (errors of different tensors are independent, and small ones
add up), so it is a knapsack with one choice of each group. It is solved by dynamic programming and not greedily: the
best step by divergence per byte is not always part of the best whole, the embeddings of a small model being as large
as all the rest. Only mixes that no other beats in both are carried from group to group; of those within one
`_GRAIN`-th of the largest size of each other the best is, which is all that is not exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_GRAIN: Final = 20_000


@dataclass(frozen=True)
class TypeOption:
    """One type of one group: its bytes, and its part of the divergence, nats."""

    type: str
    size_bytes: int
    kld: float


@dataclass(frozen=True)
class TypeMix:
    """A type for each group, in their order; size of the whole file, expected mean KL divergence in nats."""

    size_bytes: int
    kld: float
    types: tuple[str, ...]


@dataclass(frozen=True)
class _Partial:
    size_bytes: int
    kld: float
    option: TypeOption | None
    before: _Partial | None

    def types(self) -> tuple[str, ...]:
        if self.option is None or self.before is None:
            return ()
        return (*self.before.types(), self.option.type)


def tuning_mix_front(groups: Sequence[Sequence[TypeOption]], fixed_bytes: int) -> list[TypeMix]:
    """The Pareto-optimal mixes, smallest first: each further one is larger and diverges less.

    Args:
        groups: the options of each group.
        fixed_bytes: size of everything else in the file.
    """
    grain = (fixed_bytes + sum(max(o.size_bytes for o in options) for options in groups)) / _GRAIN
    kept = [_Partial(fixed_bytes, 0.0, None, None)]
    for options in groups:
        each = [_Partial(p.size_bytes + o.size_bytes, p.kld + o.kld, o, p) for p in kept for o in options]
        kept = _undominated_mixes(each, grain)
    return [TypeMix(p.size_bytes, p.kld, p.types()) for p in kept]


def _undominated_mixes(partials: list[_Partial], grain: float) -> list[_Partial]:
    kept: list[_Partial] = []
    for partial in sorted(partials, key=lambda p: (p.size_bytes, p.kld)):
        if kept and partial.kld >= kept[-1].kld:
            continue
        # The smallest mix always stays: the error for an unreachable target names it.
        if len(kept) > 1 and int(partial.size_bytes / grain) == int(kept[-1].size_bytes / grain):
            kept.pop()
        kept.append(partial)
    return kept


def tuned_mix_within_size(mixes: Sequence[TypeMix], size_bytes: int) -> TypeMix | None:
    """The best mix up to this size; None if all are larger."""
    at = bisect_right([mix.size_bytes for mix in mixes], size_bytes)
    return mixes[at - 1] if at else None


def tuned_mix_within_kld(mixes: Sequence[TypeMix], kld: float) -> TypeMix | None:
    """The smallest mix up to this expected divergence; None if all exceed it."""
    return next((mix for mix in mixes if mix.kld <= kld), None)
