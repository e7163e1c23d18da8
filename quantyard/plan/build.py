"""Lays out a build: fetch → twin → convert → projector → quantize and verify each quant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from quantyard.errors import BadRequest
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Origin, Step, StepOutput, Target
from quantyard.protocol.builder import (
    ConvertRequest,
    DequantizeRequest,
    FetchRequest,
    OutType,
    Parity,
    ParityRequest,
    ProjectorRequest,
    QuantizeRequest,
    TwinRequest,
    VerifyRequest,
)
from quantyard.quants.catalog import Quant
from quantyard.records import dataclass
from quantyard.sources.projector import Projector
from quantyard.sources.resolve import Source

PROJECTOR: Final = "projector"  # the step's label


@dataclass(frozen=True)
class BuildOptions:
    """The user's settings of the build, apart from the source."""

    quants: tuple[Quant, ...]
    outtype: OutType
    allow_pickle: bool
    allow_requantize: bool
    allow_mismatch: tuple[str, ...]
    threads: int
    workers: int
    endpoint: str | None
    parity: Parity = "off"
    allow_twin_mismatch: bool = False
    projector: Projector | None = None  # what the model reads besides text
    imatrix: bool = False  # there will be an importance matrix; imatrix.py adds it to the plan


def make_build_plan(source: Source, options: BuildOptions) -> BuildPlan:
    """Lay out the steps: fetch → twin → convert → projector → quantize and verify each quant. Steps that the source
    does not need are left out.

    Raises:
        BadRequest: a quant cannot be made without an importance matrix.
    """
    if not options.imatrix:
        _refuse_quants_without_imatrix(options.quants)
    steps: list[Step] = []
    origin = _build_origin(source, options, steps)
    outtype, reason = source.outtype(options.outtype)
    base = ModelFile(StepOutput("convert"), "model.gguf")
    if source.kind == "gguf":
        base = ModelFile(origin, source.gguf_file or "")
    if source.kind == "huggingface":
        steps += _twin_steps(origin, options)
        request = ConvertRequest(name=source.model.name, outtype=outtype, allow_pickle=options.allow_pickle)
        size_bytes = source.converted_size_bytes(outtype)
        steps.append(Step("convert", STAGES["convert"], request, {"source": origin}, size_bytes))
    if source.kind == "huggingface" and options.parity == "full":
        steps.append(_parity_step(origin, base, options))
    if options.projector and not options.projector.left_out:
        steps.append(_projector_step(source, origin, base, options.projector, options))
    targets = [_planned_quant_target(source, options, quant, outtype, base, steps) for quant in options.quants]
    return BuildPlan(
        source, tuple(steps), base, tuple(targets), outtype, reason, projector=options.projector
    )


def _refuse_quants_without_imatrix(quants: Sequence[Quant]) -> None:
    """Refuse before the download what llama-quantize would refuse after it."""
    if names := [quant.name for quant in quants if quant.needs_imatrix]:
        message = f"{', '.join(names)} cannot be made without an importance matrix, and none was asked for."
        hint = "Make one: IMATRIX=auto; give one: IMATRIX=file.gguf; or choose another quant: make quants"
        raise BadRequest(message, hint)


def _build_origin(source: Source, options: BuildOptions, steps: list[Step]) -> Origin:
    if source.local is not None:
        return ExternalInput(source.local)
    request = FetchRequest(
        repo_id=source.repo_id, commit=source.model.commit, files=source.files,
        endpoint=options.endpoint, workers=options.workers,
    )
    steps.append(Step("fetch", STAGES["fetch"], request, {}, source.size_bytes))
    return StepOutput("fetch")


def _twin_steps(origin: Origin, options: BuildOptions) -> list[Step]:
    """The comparison with Transformers, before the hours that a conversion may take."""
    if options.parity == "off":
        return []
    request = TwinRequest(allow_twin_mismatch=options.allow_twin_mismatch, threads=options.threads)
    return [Step("twin", STAGES["twin"], request, {"source": origin}, 0)]


def _projector_step(source: Source, origin: Origin, base: ModelFile, found: Projector, options: BuildOptions) -> Step:
    """What reads pictures or sound, for the converted text model."""
    request = ProjectorRequest(name=source.model.name, model_file=base.path, allow_pickle=options.allow_pickle)
    inputs = {"source": origin, "model": base.origin}
    return Step(PROJECTOR, STAGES["projector"], request, inputs, found.size_bytes + found.size_bytes // 2)


def _parity_step(origin: Origin, base: ModelFile, options: BuildOptions) -> Step:
    """The comparison of the model itself, once it is converted."""
    request = ParityRequest(
        model_file=base.path, allow_twin_mismatch=options.allow_twin_mismatch, threads=options.threads
    )
    return Step("parity", STAGES["parity"], request, {"source": origin, "model": base.origin}, 0)


def _planned_quant_target(
    source: Source, options: BuildOptions, quant: Quant, outtype: OutType,
    base: ModelFile, steps: list[Step],
) -> Target:
    size_bytes = source.quant_size_bytes(quant)
    made = base
    if not source.is_already(quant, outtype):
        request = QuantizeRequest(
            quant=quant.base, ftype=quant.ftype, source_file=base.path,
            allow_requantize=options.allow_requantize, threads=options.threads, **plan_recipe_fields(quant),
            recipe=quant.recipe.name if quant.recipe else "",
        )
        label = f"quantize {quant.name}"
        steps.append(Step(label, STAGES["quantize"], request, {"source": base.origin}, size_bytes, quant.name))
        made = ModelFile(StepOutput(label), "model.gguf")
    steps.append(_verify_step(source, options, quant, made, base))
    return Target(quant, made, steps[-1].label, size_bytes)


def plan_recipe_fields(quant: Quant) -> dict[str, Any]:
    """The fields of a request that a recipe sets; empty for a plain quant."""
    if quant.recipe is None:
        return {}
    recipe = quant.recipe
    return {
        "tensor_types": dict(recipe.tensors), "output_type": recipe.output,
        "token_embedding_type": recipe.token_embedding,
    }


def _verify_step(source: Source, options: BuildOptions, quant: Quant, made: ModelFile, base: ModelFile) -> Step:
    inputs = {"model": made.origin, "source": base.origin}
    has_reference = source.kind == "huggingface"
    if has_reference:
        inputs["reference"] = base.origin  # convert leaves reference.json beside model.gguf
    request = VerifyRequest(
        quant=quant.base, model_file=made.path, source_file=base.path, has_reference=has_reference,
        allow_mismatch=options.allow_mismatch, threads=options.threads, **plan_recipe_fields(quant),
    )
    return Step(f"verify {quant.name}", STAGES["verify"], request, inputs, 0, quant.name)


def dequantize_step(gguf: ModelFile, size_bytes: int) -> Step:
    """The first step of `make demo`: converts a GGUF back to Hugging Face format."""
    request = DequantizeRequest(source_file=gguf.path)
    return Step("dequantize", STAGES["dequantize"], request, {"source": gguf.origin}, size_bytes)
