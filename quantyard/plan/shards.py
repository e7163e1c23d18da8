"""Divides the measurements of a plan into shards: steps that several machines can run at the same time.

    evaluate Q4_K_M ─► evaluate Q4_K_M shard 1 of 2 ─┐
                       evaluate Q4_K_M shard 2 of 2 ─┴► evaluate Q4_K_M

Each shard is the same stage with a `shard` in its request; the last step puts them together. Its result has the bits
that the whole would have, so its key is that of the whole: a file that was measured in one run is not measured again in
shards, and the other way round. Importance matrices are never divided, since their sums depend on the order; nor is
what is timed, nor comparisons of embeddings, which are short.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from quantyard.plan.steps import BuildPlan, Origin, Step, StepOutput
from quantyard.protocol.shard import Shard, shard_input

# To divide another stage: add it with the inputs that it needs to put its shards together, and a `shard` to its
# request.
SHARDED_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "evaluate": ("model", "datasets", "suite"), "divergence": (), "domains": ("suite",), "behaviour": ("model",),
}  # fmt: skip


def plan_in_shards(plan: BuildPlan, finished: Collection[str], count: int) -> BuildPlan:
    """The plan with every measurement that is not finished divided into `count` shards; 1: as it is."""
    if count == 1:
        return plan
    return replace(plan, steps=tuple(_steps_in_shards(plan.steps, finished, count)))


def _steps_in_shards(steps: Sequence[Step], finished: Collection[str], count: int) -> Iterator[Step]:
    for step in steps:
        is_divided = bool(step.whole) or step.keyed_by is not None
        if step.row.name not in SHARDED_STAGES or step.label in finished or is_divided:
            yield step
            continue
        shards = [_shard_of_step(step, Shard(index=index, count=count)) for index in range(1, count + 1)]
        yield from shards
        kept = {name: origin for name, origin in step.inputs.items() if name in SHARDED_STAGES[step.row.name]}
        made: dict[str, Origin] = {shard_input(at): StepOutput(shard.label) for at, shard in enumerate(shards, 1)}
        yield replace(step, inputs=kept | made, keyed_by=step.inputs)


def _shard_of_step(step: Step, shard: Shard) -> Step:
    request = step.request.model_copy(update={"shard": shard})
    return replace(step, label=f"{step.label} shard {shard.index} of {shard.count}", request=request, whole=step.label)
