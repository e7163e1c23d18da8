"""Divides the measurements of a plan into shards: steps that several machines can run at the same time.

    evaluate Q4_K_M ─► evaluate Q4_K_M shard 1 of 2 ─┐
                       evaluate Q4_K_M shard 2 of 2 ─┴► evaluate Q4_K_M

Each shard is the same stage with a `shard` in its request; the last step puts them together. Its result has the bits
that the whole would have, so its key is that of the whole: a file that was measured in one run is not measured again in
shards, and the other way round. Importance matrices are never divided, since their sums depend on the order; nor is
what is timed, nor comparisons of embeddings, which are short.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from quantyard.plan.steps import BuildPlan, Origin, Step, StepOutput
from quantyard.protocol.base import StageRequest
from quantyard.protocol.evaluation import DivergenceRequest, DomainsRequest, EvaluateRequest
from quantyard.protocol.shard import Shard, shard_input

# To divide another stage: add it with the inputs that it needs to put its shards together, and a `shard` to its
# request.
SHARDED_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "evaluate": ("model", "datasets", "suite"), "divergence": (), "domains": ("suite",), "behaviour": ("model",),
}  # fmt: skip


_MOST_BY_DEFAULT: Final = 8  # each shard loads the model, and those of an evaluation check its scores again


def default_shards(plan: BuildPlan, nodes: int) -> int:
    """As many as keep every node at work while all files are measured: the nodes for each file, rounded up.

    It does not depend on what is finished, so that a run that goes on finds the shards of the one before.
    """
    stages = [step.row.name for step in plan.steps if step.row.name in SHARDED_STAGES and not step.whole]
    n_files = max(map(stages.count, stages), default=0)
    return min(_MOST_BY_DEFAULT, -(-nodes // n_files)) if n_files else 1


def plan_in_shards(plan: BuildPlan, finished: Collection[str], count: int) -> BuildPlan:
    """The plan with every measurement that is not finished divided into `count` shards, or as many as it has parts;
    1: as it is.
    """
    if count == 1:
        return plan
    return replace(plan, steps=tuple(plan_steps_in_shards(plan.steps, finished, count)))


def plan_steps_in_shards(steps: Sequence[Step], finished: Collection[str], count: int) -> Iterator[Step]:
    """The steps of a plan, with those divided that can be; see `plan_in_shards`."""
    for step in steps:
        n_shards = min(count, _most_shards(step.request))
        is_divided = bool(step.whole) or step.keyed_by is not None
        if step.row.name not in SHARDED_STAGES or step.label in finished or is_divided or n_shards == 1:
            yield step
            continue
        shards = [_shard_of_step(step, Shard(index=index, count=n_shards)) for index in range(1, n_shards + 1)]
        yield from shards
        kept = {name: origin for name, origin in step.inputs.items() if name in SHARDED_STAGES[step.row.name]}
        made: dict[str, Origin] = {shard_input(at): StepOutput(shard.label) for at, shard in enumerate(shards, 1)}
        yield replace(step, inputs=kept | made, keyed_by=step.inputs)


def _most_shards(request: StageRequest) -> int:
    """The parts that it can be divided into, where the request says so; more shards would have nothing to do."""
    if isinstance(request, DivergenceRequest) and request.settings.n_chunks:
        return request.settings.n_chunks
    if isinstance(request, DomainsRequest) and request.settings.names:
        return len(request.settings.names)
    if isinstance(request, EvaluateRequest) and not request.tasks:
        return 1
    return sys.maxsize


def _shard_of_step(step: Step, shard: Shard) -> Step:
    request = step.request.model_copy(update={"shard": shard})
    return replace(step, label=f"{step.label} shard {shard.index} of {shard.count}", request=request, whole=step.label)
