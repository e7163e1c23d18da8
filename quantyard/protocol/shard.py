"""Shards: a measurement's work divided among several runs of its stage, which may be on different machines.

A request with a `shard` asks for one of them. A run of the same stage with the inputs `shard-1`, `shard-2`, … (what
every one of them left) puts the result together: the same bits as of a run that measures all itself, since what is
divided are units that are computed apart from each other anyway.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from quantyard.protocol.base import Frozen


class Shard(Frozen):
    """The `index`-th of `count` shards, counted from 1."""

    index: Annotated[int, Field(ge=1)]
    count: Annotated[int, Field(ge=2, le=1000)]

    @model_validator(mode="after")
    def _index_in_count(self) -> Self:
        if self.index > self.count:
            raise ValueError(f"there are {self.count} shards")
        return self

    @property
    def is_last(self) -> bool:
        """Whether it has what cannot be divided."""
        return self.index == self.count


RequestedShard = Annotated[Shard | None, Field(exclude_if=lambda value: value is None)]  # None: the whole


def shard_input(index: int) -> str:
    """The name of the input with what a shard left."""
    return f"shard-{index}"


def shard_folders(in_dir: Path) -> list[Path]:
    """What the shards left that this run puts together, in their order; [] where there are none."""
    found = list[Path]()
    while (folder := in_dir / shard_input(len(found) + 1)).is_dir():
        found.append(folder)
    return found


def shard_members(costs: Sequence[float], shard: Shard) -> list[int]:
    """The numbers of the units that this shard computes, ascending: the costliest first, each to the shard with the
    least work so far. All shards come to the same division.
    """
    load, members = [0.0] * shard.count, list[int]()
    for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        least = min(range(shard.count), key=lambda each: (load[each], each))
        load[least] += costs[number]
        if least == shard.index - 1:
            members.append(number)
    return sorted(members)


def shard_range(n: int, tail: float, shard: Shard) -> range:
    """The units of this shard, of `n` of equal cost in a row; the last shard also has a tail that costs as `tail`."""
    def end(index: int) -> int:
        return n if index == shard.count else min(n, round((n + tail) * index / shard.count))

    return range(end(shard.index - 1), end(shard.index))
