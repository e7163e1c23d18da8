"""A plan's steps as people see them: a stage that runs in shards is one of them, whatever its number of shards."""

from __future__ import annotations

from collections.abc import Sequence

from quantyard.plan.steps import Step
from quantyard.records import dataclass


@dataclass(frozen=True)
class StepWithShards:
    """A step, with the shards that it puts together; () where it was not divided."""

    step: Step
    shards: tuple[Step, ...] = ()

    @property
    def title(self) -> str:
        """Such as `convert`, or `evaluate Q4_K_M, 4 shards`."""
        return f"{self.step.label}, {len(self.shards)} shards" if self.shards else self.step.label

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all its steps in the plan."""
        return (*(shard.label for shard in self.shards), self.step.label)


def steps_with_shards(steps: Sequence[Step]) -> list[StepWithShards]:
    """The steps in their order, each with its shards, which are before it."""
    shards: dict[str, list[Step]] = {}
    for step in steps:
        if step.whole:
            shards.setdefault(step.whole, []).append(step)
    return [StepWithShards(step, tuple(shards.get(step.label, ()))) for step in steps if not step.whole]
