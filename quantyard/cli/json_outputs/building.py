"""The answers of the commands that plan, build, measure, test and pack. Sizes are bytes, times are seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantyard.cli.json_outputs.base import Finite, JsonOutput, JsonRow
from quantyard.execution.manifest_writer import Measured
from quantyard.forecast.samples import TimingSample
from quantyard.metrics.pareto import pareto_beaten_by, pareto_entries
from quantyard.plan.notes import plan_notes
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.api_tests import ContractReport
from quantyard.protocol.facts import TwinFacts
from quantyard.protocol.measurements import EvalReport
from quantyard.sources.presets import Preset
from quantyard.workflows.results import Built, Planned

if TYPE_CHECKING:  # each command imports its own workflow alone
    from quantyard.workflows.image import PackedImage
    from quantyard.workflows.lora import Adapter
    from quantyard.workflows.matrix import Matrix
    from quantyard.workflows.rates import WorkflowRates

# ---- plan


class PlannedStage(JsonRow):
    """One stage of the plan."""

    label: str
    state: Literal["done", "to run"]
    size_bytes: int  # of what it leaves
    memory_bytes: int | None  # that it needs to be fast; null: not known, or done
    seconds: float | None  # null: not known, or done
    most_seconds: float | None  # what it may take, if `seconds` is from another architecture; else the same


class PlannedFile(JsonRow):
    """One GGUF that the plan makes."""

    quant: str
    size_bytes: int
    serve_memory_bytes: int | None  # null: not known yet


class PlannedProjector(JsonRow):
    """What reads pictures or sound for the model."""

    media: list[str]  # vision, audio
    size_bytes: int
    left_out: str  # why none is made: asked, unsupported; "" if one is


class PlannedPowerRow(JsonRow):
    """The smallest true difference of accuracy that a task can show on a file, with 80 % power after Holm."""

    task: str
    quant: str
    n_questions: int | None  # null: not known before it is measured
    difference: Finite | None  # 0 to 1; null: not known, or not even the loss of every answer
    flip_share: Finite  # of answers that flip, as assumed
    flip_reason: str
    n_comparisons: int  # that the verdicts are corrected for together


class PlannedNodes(JsonRow):
    """What the plan takes on several machines, each running one stage at a time, without queues and transfers."""

    waves: list[list[str]]  # labels that could run at the same time
    seconds: dict[str, Finite]  # by the number of nodes
    critical_path: list[str]  # labels
    critical_path_seconds: Finite  # no number of nodes is faster


class PlanOutput(JsonOutput):
    """The answer of `plan`."""

    model: str
    commit: str  # of the Hub, or the digest of a local source
    engine: str
    outtype: str
    projector: PlannedProjector | None
    notes: list[str]
    stages: list[PlannedStage]
    seconds: float | None  # all that is left; null: no stage's time is known
    most_seconds: float | None  # what it may take, where times of another architecture are all that is known
    time_not_known: list[str]  # stages without a forecast
    trial_seconds: float  # that the trial of IMATRIX=auto takes in addition
    download_bytes: int
    disk_needed_bytes: int
    disk_free_bytes: int
    fitting: list[str] | None  # the quants that fit the disk; null: all do
    files: list[PlannedFile]
    suite: str | None
    baseline: str | None
    nodes: PlannedNodes | None  # null: without NODES
    power: list[PlannedPowerRow]  # one for each task and file; empty without a suite
    preset: Preset | None  # of the list of models, if MODEL is one of its names


def plan_output(planned: Planned) -> PlanOutput:
    """The plan."""
    plan, finished, cost, measuring = planned.plan, planned.finished, planned.cost, planned.plan.measuring
    stages = [
        PlannedStage(
            label=step.label, state="done" if step.label in finished else "to run", size_bytes=step.size_bytes,
            memory_bytes=cost.stage_memory_bytes.get(step.label),
            seconds=cost.time.steps[step.label].seconds if step.label in cost.time.steps else None,
            most_seconds=cost.time.steps[step.label].most_seconds if step.label in cost.time.steps else None,
        )
        for step in plan.steps
    ]
    return PlanOutput(
        model=plan.source.title, commit=plan.source.model.commit, engine=planned.engine, outtype=plan.outtype,
        projector=_planned_projector_json(plan), notes=list(plan_notes(plan)), stages=stages,
        seconds=cost.time.seconds if cost.time.steps else None,
        most_seconds=cost.time.most_seconds if cost.time.steps else None, time_not_known=list(cost.time.unknown),
        trial_seconds=cost.trial_s, download_bytes=cost.download_bytes, disk_needed_bytes=cost.disk_needed_bytes,
        disk_free_bytes=cost.disk_free_bytes, fitting=None if cost.fits else list(cost.fitting),
        files=[PlannedFile(**file.__dict__) for file in cost.files],
        suite=measuring.suite.name if measuring else None, baseline=measuring.baseline if measuring else None,
        nodes=_planned_nodes_json(planned) if planned.nodes else None,
        power=[PlannedPowerRow(**power.__dict__) for power in planned.powers], preset=plan.source.preset,
    )


def _planned_nodes_json(planned: Planned) -> PlannedNodes:
    from quantyard.forecast.node_schedule import critical_path, node_counts, node_waves, plan_node_tasks, run_on_nodes

    tasks = plan_node_tasks(planned.plan, planned.finished, planned.cost.time)
    longest_s, path = critical_path(tasks)
    return PlannedNodes(
        waves=node_waves(tasks), critical_path=path, critical_path_seconds=longest_s,
        seconds={str(n): run_on_nodes(tasks, n).seconds for n in node_counts(planned.nodes)},
    )


def _planned_projector_json(plan: BuildPlan) -> PlannedProjector | None:
    found = plan.projector
    if found is None:
        return None
    return PlannedProjector(media=list(found.media), size_bytes=found.size_bytes, left_out=found.left_out)


# ---- build, eval, matrix


class BuiltFileRow(JsonRow):
    """One GGUF that was built."""

    quant: str
    path: str
    size_bytes: int
    sha256: str
    bits_per_weight: float
    note: str  # what is worth knowing of it; may be empty


class BuildOutput(JsonOutput):
    """The answer of `build`."""

    model: str
    commit: str  # of the Hub, or the digest of a local source
    manifest: str  # path
    ran: list[str]  # labels of the stages that this call ran; empty if all were done before
    projector: list[str]  # paths of what reads pictures or sound, the one to serve first
    files: list[BuiltFileRow]
    twin: TwinFacts | None  # the comparison of a small random model with Transformers; null: none in this plan
    parity: TwinFacts | None  # the same of the model itself


class MeasuredOutput(BuildOutput):
    """The answer of `eval` and `demo`: that of `build`, and what was measured."""

    suite: str
    baseline: str
    beaten_by: dict[str, list[str]]  # each file → the files that are at least as small, as accurate and as fast
    report: EvalReport
    report_folder: str
    report_files: list[str]


class FailedStage(JsonRow):
    """A stage of a matrix that failed; the others went on."""

    stage: str
    message: str
    exit_code: int


class MatrixOutput(MeasuredOutput):
    """The answer of `matrix`: that of `eval`, and what became of each file."""

    front: dict[str, list[str]]  # as `beaten_by`
    page: str  # path
    card: str  # path
    failed: list[FailedStage]


def build_output(built: Built) -> BuildOutput:
    """The result of a build, with the measurements if there are any."""
    if built.measured:
        return MeasuredOutput(**_built_json(built), **_measured_json(built.measured))
    return BuildOutput(**_built_json(built))


def matrix_output(found: Matrix) -> MatrixOutput:
    """The result of a matrix."""
    built = found.built
    assert built.measured is not None, "a matrix has one"
    measured = _measured_json(built.measured)
    failed = [
        FailedStage(stage=label, message=failed.message, exit_code=failed.code)
        for label, failed in built.failures.items()
    ]
    return MatrixOutput(
        **_built_json(built), **measured, front=measured["beaten_by"], page=str(found.page), card=str(found.card),
        failed=failed,
    )


def _built_json(built: Built) -> dict[str, Any]:
    source, told = built.plan.source, {}
    for name in ("twin", "parity"):  # without what else a stage may have stated
        facts = built.twins.get(name)
        told[name] = facts and TwinFacts.model_validate(facts.model_dump(include=set(TwinFacts.model_fields)))
    files = [
        BuiltFileRow(
            quant=f.quant, path=str(f.path), size_bytes=f.record.size_bytes, sha256=f.record.sha256,
            bits_per_weight=f.record.bits_per_weight, note=f.note,
        )
        for f in built.files
    ]
    return {
        "model": source.title, "commit": source.model.commit, "manifest": str(built.manifest_path),
        "ran": list(built.ran), "projector": [str(path) for path in built.projector], "files": files, **told,
    }


def _measured_json(measured: Measured) -> dict[str, Any]:
    report = measured.report
    beaten = {label: list(winners) for label, winners in pareto_beaten_by(pareto_entries(report)).items()}
    return {
        "suite": report.suite.name, "baseline": report.baseline, "beaten_by": beaten, "report": report,
        "report_folder": str(measured.folder), "report_files": _json_files_below(measured.folder),
    }


def _json_files_below(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]


# ---- contract, lora, image, rates


class ContractOutput(JsonOutput):
    """The answer of `contract`."""

    contracts: list[ContractReport]  # one of each file


def contract_output(reports: Sequence[ContractReport]) -> ContractOutput:
    """The reports of the API test."""
    return ContractOutput(contracts=list(reports))


class LoraOutput(JsonOutput):
    """The answer of `lora`."""

    adapter: str
    commit: str
    ran: list[str]  # labels of the stages that this call ran
    path: str
    size_bytes: int
    manifest: str  # path


def lora_output(adapter: Adapter) -> LoraOutput:
    """The converted adapter."""
    return LoraOutput(
        adapter=adapter.source.title, commit=adapter.source.model.commit, ran=list(adapter.ran),
        path=str(adapter.path), size_bytes=adapter.size_bytes, manifest=str(adapter.manifest_path),
    )


class ImageRow(JsonRow):
    """One image with a model inside."""

    tag: str
    quant: str
    pushed: bool
    run: str  # the command that starts it
    key: str  # the command that prints the API key of the running container


class ImageOutput(JsonOutput):
    """The answer of `image`."""

    images: list[ImageRow]


def image_output(images: Sequence[PackedImage]) -> ImageOutput:
    """The images that were made."""
    return ImageOutput(images=[ImageRow(**image.__dict__) for image in images])


class RatesOutput(JsonOutput):
    """The answer of `rates`."""

    engine: str
    seconds: float  # of the whole run
    stages: list[TimingSample]


def rates_output(timed: WorkflowRates) -> RatesOutput:
    """The times of the stages."""
    return RatesOutput(engine=timed.engine, seconds=timed.seconds, stages=list(timed.samples))
