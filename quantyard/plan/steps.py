"""The parts of a plan: steps, the origins of their inputs, and the files that the plan makes.

`StageSpec` identifies the inputs of a stage by digest, so that an engine on another machine can find them in its own
store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import JsonValue

from quantyard.plan.stages import StageRow
from quantyard.protocol.allowed_outputs import Leaves
from quantyard.protocol.base import StageRequest, json_digest, stage_request_digest
from quantyard.protocol.builder import OutType
from quantyard.quants.catalog import Quant
from quantyard.records import dataclass
from quantyard.sources.projector import Projector
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact

if TYPE_CHECKING:  # a build measures nothing
    from quantyard.protocol.evaluation import Suite


@dataclass(frozen=True)
class StepOutput:
    """An input that another step of the plan makes."""

    step: str


@dataclass(frozen=True)
class ExternalInput:
    """An input that exists already, such as a local model or a user's suite."""

    artifact: Artifact


Origin = StepOutput | ExternalInput


@dataclass(frozen=True)
class Step:
    """One stage with its request and the origins of its inputs."""

    label: str  # unique in the plan: "convert", "quantize Q4_K_M"
    row: StageRow
    request: StageRequest
    inputs: Mapping[str, Origin]
    size_bytes: int  # expected size of its outputs
    quant: str = ""  # the quant of the one file that it is about; "" if several files need it
    whole: str = ""  # of a shard: the label of the step that puts the shards together
    # Of that step: the inputs that its key is made of, which are those of the whole; None: those that it reads.
    keyed_by: Mapping[str, Origin] | None = None


@dataclass(frozen=True)
class StageSpec:
    """A stage that can run on any machine: its inputs are digests, and its key identifies its result."""

    label: str
    row: StageRow
    request: StageRequest
    inputs: Mapping[str, str]
    key: str

    @property
    def leaves(self) -> Leaves:
        """The files that it must and may leave."""
        return self.row.leaves(self.request)


def step_spec(step: Step, inputs: Mapping[str, str], code_version: str, image: str) -> StageSpec:
    """The spec of a step whose input digests are known. Its key is a digest of request, inputs, code and image."""
    parts: dict[str, JsonValue] = {"request": stage_request_digest(step.request), "inputs": dict(inputs)}
    if not step.row.pinned:
        parts |= {"code": code_version, "image": image}
    return StageSpec(step.label, step.row, step.request, dict(inputs), json_digest(parts))


@dataclass(frozen=True)
class ModelFile:
    """One GGUF: its origin, and the path of the file (or its first shard) in it."""

    origin: Origin
    path: str


@dataclass(frozen=True)
class Target:
    """One GGUF that the build makes, and the step that verifies it."""

    quant: Quant
    file: ModelFile
    verified_by: str
    size_bytes: int

    @property
    def made_by(self) -> str:
        """The label of the step that makes it, or "" if it is the source itself."""
        return self.file.origin.step if isinstance(self.file.origin, StepOutput) else ""


@dataclass(frozen=True)
class Measuring:
    """The measurement that follows a build; see evaluation.py."""

    suite: Suite
    baseline: str
    labels: tuple[str, ...]  # the baseline's first
    left_out: tuple[str, ...] = ()  # files of the last report on this suite that cannot stand beside these


@dataclass(frozen=True)
class BuildPlan:
    """Steps, each after those that it reads from, and the files that they make."""

    source: Source
    steps: tuple[Step, ...]
    base: ModelFile  # the file that the quants are made from
    targets: tuple[Target, ...]
    outtype: OutType
    outtype_reason: str
    measuring: Measuring | None = None
    contracts: tuple[str, ...] = ()  # the quants whose API is tested
    projector: Projector | None = None  # what the model reads besides text
    foreign: tuple[str, ...] = ()  # labels of files that somebody else made: measured, but not recorded as the model's
