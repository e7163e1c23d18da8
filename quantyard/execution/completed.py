"""Finds the finished steps of a plan by their keys in the store, and the inputs of each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path

from quantyard.engines import Engine
from quantyard.engines.images import engine_code_version
from quantyard.plan.steps import BuildPlan, ExternalInput, StageSpec, Step, StepOutput, step_spec
from quantyard.protocol.base import NodeFacts
from quantyard.records import dataclass
from quantyard.store.artifact import Artifact, FinishedStage
from quantyard.store.stages import ModelStore


@dataclass
class CompletedSteps:
    """The finished steps of one plan, by label, and the specs of all steps whose inputs are known."""

    engine: Engine
    store: ModelStore
    repo_dir: Path
    steps: dict[str, FinishedStage] = field(default_factory=dict)
    specs: dict[str, StageSpec] = field(default_factory=dict)

    def __contains__(self, label: str) -> bool:
        return label in self.steps

    def find(self, plan: BuildPlan) -> None:
        """Look for each step in the store. A step counts only if all steps that it reads from count."""
        for step in plan.steps:
            spec = self.spec(step)
            if spec is not None and (found := self._stored(spec)):
                self.steps[step.label] = found

    def _stored(self, spec: StageSpec) -> FinishedStage | None:
        """The stored result of a step, unless another environment may have a better one under the same key."""
        found = self.store.finished(spec.label, spec.key)
        return None if found and found.is_provisional else found

    def spec(self, step: Step) -> StageSpec | None:
        """The spec of a step; None while its inputs or its image are missing."""
        inputs: dict[str, str] = {}
        for name, origin in (step.inputs if step.keyed_by is None else step.keyed_by).items():
            if isinstance(origin, ExternalInput):
                inputs[name] = origin.artifact.digest
            elif origin.step in self.steps:
                inputs[name] = self.steps[origin.step].artifact.digest
            else:
                return None
        image = self.engine.identity(step.row.image)
        if image is None and not step.row.pinned:
            return None
        spec = step_spec(self._placed(step), inputs, engine_code_version(self.repo_dir, step.row.code), image or "")
        self.specs[step.label] = spec
        return spec

    def _placed(self, step: Step) -> Step:
        """The step; the request of a measurement with times names the engine's machine."""
        if "machine" not in type(step.request).model_fields:
            return step
        return replace(step, request=step.request.model_copy(update={"machine": self._machine}))

    @cached_property
    def _machine(self) -> str:
        return self.engine.capacity().machine

    def is_made(self, step: Step) -> bool:
        """Whether the step's result is in the store, for instance from another plan. Its inputs must be known."""
        spec = self.spec(step)
        assert spec is not None, f"{step.label}: its inputs are not finished"
        if found := self._stored(spec):
            self.steps[step.label] = found
        return found is not None

    def is_needless(self, plan: BuildPlan, step: Step) -> bool:
        """Whether the step is a shard of a result that is in the store already."""
        if not step.whole:
            return False
        whole = next(each for each in plan.steps if each.label == step.whole)
        return whole.label in self.steps or (self.spec(whole) is not None and self.is_made(whole))

    def shard_nodes(self, step: Step) -> tuple[NodeFacts, ...]:
        """The machines of the shards that the step puts together; () where there are none."""
        if step.keyed_by is None:
            return ()
        made = [origin for name, origin in step.inputs.items() if name not in step.keyed_by]
        return tuple(self.steps[origin.step].result.node for origin in made if isinstance(origin, StepOutput))

    def is_ready(self, step: Step) -> bool:
        """Whether all inputs of the step are finished."""
        return all(origin.step in self.steps for origin in step.inputs.values() if isinstance(origin, StepOutput))

    def inputs(self, step: Step) -> Mapping[str, Artifact]:
        """The inputs of a step by name."""
        return {
            name: origin.artifact if isinstance(origin, ExternalInput) else self.steps[origin.step].artifact
            for name, origin in step.inputs.items()
        }

    def size_bytes(self, step: Step) -> int:
        """Size of what a step reads and writes; each artifact counts once."""
        read = {artifact.digest: artifact.size_bytes for artifact in self.inputs(step).values()}
        return sum(read.values()) + step.size_bytes

    def partial_bytes(self, plan: BuildPlan) -> int:
        """How many bytes of the plan's outputs are on disk already, left by unfinished resumable steps."""
        waiting = (s for s in plan.steps if s.row.resumable and s.size_bytes and s.label not in self.steps)
        specs = [self.specs[step.label] for step in waiting if step.label in self.specs]
        return sum(self.store.partial_bytes(spec.label, spec.key) for spec in specs)
