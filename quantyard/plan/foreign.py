"""Adds to a plan that measures the steps on files that other people made: fetch, verify against ours, measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from quantyard.plan.evaluation import add_measured_files
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Origin, Step, StepOutput
from quantyard.protocol.builder import FetchRequest, VerifyForeignRequest
from quantyard.requests import BuildRequest
from quantyard.sources.foreign_files import ForeignFile, foreign_base_quant


def add_foreign_files(plan: BuildPlan, files: Sequence[ForeignFile], request: BuildRequest) -> BuildPlan:
    """The plan whose report is also about these files, each measured as the baseline is. A file that cannot be fetched
    or is refused does not stop the others: its steps carry its label.
    """
    steps, models = list[Step](), dict[str, ModelFile]()
    for file in files:
        origin = _foreign_origin(file, request, steps)
        models[file.label] = ModelFile(origin, file.source.gguf_file or "")
        steps.append(_verify_foreign_step(plan, file, models[file.label], request.threads))
    assert plan.measuring is not None, "there is a report"
    wide = add_measured_files(plan, models, (*plan.measuring.labels, *models))
    at = next(i for i, step in enumerate(wide.steps) if step.row.image == "eval" and step.row.name != "datasets")
    whole = (*wide.steps[:at], *steps, *wide.steps[at:])
    return replace(wide, steps=whole, foreign=(*plan.foreign, *models))


def verify_foreign_label(label: str) -> str:
    """The label of the step that checks the file with this label."""
    return f"verify_foreign {label}"


def _foreign_origin(file: ForeignFile, request: BuildRequest, steps: list[Step]) -> Origin:
    """Where the file is, or the step that downloads it, which is added to the steps."""
    source = file.source
    if source.local is not None:
        return ExternalInput(source.local)
    asked = FetchRequest(
        repo_id=source.repo_id, commit=file.revision, files=source.files, endpoint=request.endpoint,
        workers=request.workers,
    )
    label = f"fetch {file.label}"
    steps.append(Step(label, STAGES["fetch"], asked, {}, source.size_bytes, file.label))
    return StepOutput(label)


def _verify_foreign_step(plan: BuildPlan, file: ForeignFile, model: ModelFile, threads: int) -> Step:
    inputs = {"model": model.origin, "source": plan.base.origin}
    has_reference = plan.source.kind == "huggingface"
    if has_reference:
        inputs["reference"] = plan.base.origin  # convert leaves reference.json beside model.gguf
    request = VerifyForeignRequest(
        model_file=model.path, source_file=plan.base.path, has_reference=has_reference,
        named_type=foreign_base_quant(file.quant), threads=threads,
    )
    label = verify_foreign_label(file.label)
    return Step(label, STAGES["verify_foreign"], request, inputs, 0, file.label)
