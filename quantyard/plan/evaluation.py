"""Adds to the plan of a build the steps that measure its files.

    datasets ─► [the build] ─► evaluate <label>… ─► divergence <label>… ─► domains <label>… ─► behaviour <label>…
    ─► speed <label>… ─► cache <label>… ─► openvino <label>… ─► report

The data sets come first, so that an unknown task ends the command before a model is converted. The baseline is the file
that the quants are made from, unless BASELINE names another one, which is then built and verified like any quant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from quantyard.errors import BadRequest, NotScored
from quantyard.files.own_files import find_file, list_files
from quantyard.formats.gguf import why_gguf_cannot_generate
from quantyard.plan.measuring_steps import MeasureOptions, datasets_steps, measuring_steps
from quantyard.plan.report_step import MEASURING_STAGES, REPORT, report_step_input
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, Measuring, ModelFile, Origin, Step, StepOutput
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.evaluation import (
    CacheRequest,
    OpenVinoRequest,
    ReportRequest,
    Runtime,
    SharedBaselineRequest,
    SimilarityRequest,
    SimilaritySettings,
    SpeedRequest,
    Suite,
)
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.runner import file_sha256
from quantyard.quants.catalog import QUANTS, TYPE_UNKNOWN, UNQUANTIZED
from quantyard.requests import BuildRequest, MeasureRequest
from quantyard.sources.gguf_file import gguf_quant_name, is_trained_quantized
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact, FinishedStage
from quantyard.store.hash_cache import HashCache
from quantyard.store.outputs import read_stored_output


def plan_measure_options(request: BuildRequest, measure: MeasureRequest) -> MeasureOptions:
    """Find the suite and the data sets that the user named.

    Raises:
        BadRequest: the suite does not exist, or DATASETS is not a folder of data sets.
    """
    from quantyard.plan.suites import (  # imported late: no build should wait for a YAML parser
        adjusted_suite,
        find_suite,
    )

    loaded = find_suite(measure.suite)
    suite = adjusted_suite(
        loaded, measure.tasks or None, measure.limit, measure.num_fewshot, measure.seed, measure.cache_types,
        measure.runtime,
    )
    hashes = HashCache(request.artifacts / ".hashes.json")
    return MeasureOptions(
        suite=suite, files=loaded.local,
        runtime=Runtime(threads=request.threads, n_gpu_layers=measure.n_gpu_layers, max_length=measure.max_length),
        datasets=plan_brought_datasets(measure.datasets, hashes) if measure.datasets and suite.needs_network else None,
        baseline=measure.baseline, allow_unsafe_code=measure.allow_unsafe_code, endpoint=request.endpoint,
        mix_nodes=measure.mix_nodes,
    )


def plan_brought_datasets(folder: Path, hashes: HashCache) -> Artifact:
    """The data sets for an air-gapped machine: the folder `files` of a stage `datasets` that ran elsewhere.

    Raises:
        BadRequest: the folder is empty, or a link in it leads out of it.
    """
    names = [file.path for file in list_files(folder, every=True)]
    if not names:
        hint = "Give a copy of the folder `files` that the stage `datasets` left on a machine with a network."
        raise BadRequest(f"DATASETS={folder} does not hold any files.", hint)
    places = {name: find_file(folder, name) for name in names}
    files = tuple(
        FileEntry(path=name, size_bytes=place.stat().st_size, sha256=hashes.sha256(place, file_sha256))
        for name, place in places.items()
    )
    return Artifact(files_digest(files), files, folder)


def add_measuring_steps(plan: BuildPlan, options: MeasureOptions) -> BuildPlan:
    """The plan with the steps that measure its files and compare them with the baseline.

    Raises:
        BadRequest: the source is quantized already, and BASELINE is not given.
        NotScored: the model cannot be measured.
    """
    refuse_unscored_plan(plan.source, "measured", "Build its files without measuring them: make build MODEL=… QUANT=…")
    generates = plan.source.use.purpose == "generate"
    own = options.suite.model_copy(update={"similarity": None}) if generates else _vector_suite(options.suite)
    options = replace(options, suite=own)
    if plan.source.has_chat_template is False:  # a base model's questions are plain text
        options = replace(options, suite=options.suite.model_copy(update={"apply_chat_template": False}))
    baseline, file = _evaluation_baseline(plan, options)
    files = {baseline: file} | {t.quant.name: t.file for t in plan.targets if t.quant.name != baseline}
    datasets = datasets_steps(options)
    measuring = measuring_steps(options, baseline, files)
    labels = tuple(files)
    request = ReportRequest(
        title=plan.source.model.name, suite=options.suite, baseline=baseline, labels=labels, mix_nodes=options.mix_nodes
    )
    inputs = {report_step_input(step.row.name, step.quant): StepOutput(step.label) for step in measuring}
    report = Step(REPORT, STAGES["report"], request, inputs, 0)
    return replace(
        plan, steps=(*datasets, *plan.steps, *measuring, report), measuring=Measuring(options.suite, baseline, labels)
    )


def add_measured_files(plan: BuildPlan, files: Mapping[str, ModelFile], order: Sequence[str]) -> BuildPlan:
    """The plan whose report is also about these files, each measured as the baseline is.

    Args:
        files: by label, none of which the plan measures already.
        order: labels in the order of the report; others come last.
    """
    assert plan.measuring is not None, "there is a report"
    if not files:
        return plan
    baseline, at = plan.measuring.baseline, next(i for i, step in enumerate(plan.steps) if step.label == REPORT)
    report = plan.steps[at]
    assert isinstance(report.request, ReportRequest), "by its label"
    templates = _measured_step_templates(plan, baseline)
    added = [_step_measured_like_baseline(step, label, file) for step in templates for label, file in files.items()]
    places = {label: place for place, label in enumerate((baseline, *order))}
    every = (*plan.measuring.labels, *files)
    labels = tuple(sorted(every, key=lambda label: places.get(label, len(places))))
    inputs = dict(report.inputs) | {
        report_step_input(step.row.name, step.quant): StepOutput(step.label) for step in added
    }
    report = replace(report, request=report.request.model_copy(update={"labels": labels}), inputs=inputs)
    steps = (*plan.steps[:at], *added, report, *plan.steps[at + 1 :])
    return replace(plan, steps=steps, measuring=replace(plan.measuring, labels=labels))


def _measured_step_templates(plan: BuildPlan, baseline: str) -> list[Step]:
    """One step of each measuring stage: the baseline's, or that of the first file where it has none."""
    found: dict[str, Step] = {}
    for step in plan.steps:
        if step.row.name in MEASURING_STAGES and (step.row.name not in found or step.quant == baseline):
            found[step.row.name] = step
    return [*found.values()]


def _step_measured_like_baseline(template: Step, label: str, file: ModelFile) -> Step:
    """The baseline's step for another file, which some stages compare with the baseline."""
    request, inputs = template.request, {**template.inputs, "model": file.origin}
    changes: dict[str, str] = {"label": label, "model_file": file.path}
    by_turns = not isinstance(request, SpeedRequest) or request.settings.beside_baseline
    if (
        isinstance(
            request, SharedBaselineRequest | CacheRequest | OpenVinoRequest | SimilarityRequest | SpeedRequest
        )
        and by_turns and "baseline" not in template.inputs
    ):  # fmt: skip
        changes["baseline_file"] = request.model_file
        inputs["baseline"] = template.inputs["model"]
    return Step(
        f"{template.row.name} {label}", template.row, request.model_copy(update=changes), inputs, 0, label
    )


def _vector_suite(suite: Suite) -> Suite:
    """The suite for a model that embeds texts or ranks documents: it has no tasks, perplexity or generated tokens."""
    return suite.model_copy(update={
        "tasks": (), "include_path": None, "needs_network": False, "apply_chat_template": False, "divergence": None,
        "domains": None, "behaviour": None, "speed": None, "cache": None, "openvino": None,
        "similarity": SimilaritySettings(),
    })  # fmt: skip


def report_step_inputs(steps: Sequence[Step], labels: Collection[str]) -> dict[str, Origin]:
    """The inputs of a report on these files: what the plan's steps measure of them."""
    return {
        report_step_input(step.row.name, step.quant): StepOutput(step.label)
        for step in steps if step.row.name in MEASURING_STAGES and step.quant in labels
    }  # fmt: skip


def refuse_unscored_plan(source: Source, deed: str, instead: str) -> None:
    """Refuse a model that does not expose token log-probabilities, before its weights are downloaded.

    Args:
        deed: what the command would do with it, such as "measured".
        instead: what to type instead.

    Raises:
        NotScored: its GGUF header says that it is such a model.
    """
    if deed == "measured" and source.use.purpose != "generate":
        return  # by its embeddings or scores
    if source.use.purpose != "generate":
        what = "embeds texts" if source.use.purpose == "embed" else "ranks documents"
        message = f"{source.title} cannot be {deed}: it {what} and does not expose token log-probabilities."
        raise NotScored(message, instead)
    if source.gguf is not None and (reason := why_gguf_cannot_generate(source.gguf)):
        message = f"{source.title} cannot be {deed}: {reason} and does not expose token log-probabilities."
        raise NotScored(message, instead)


def _evaluation_baseline(plan: BuildPlan, options: MeasureOptions) -> tuple[str, ModelFile]:
    if options.baseline is not None:
        return options.baseline.name, next(t.file for t in plan.targets if t.quant == options.baseline)
    name = plan_unquantized_type(plan) or _trained_quant_of_source(plan.source)
    if name is None:
        what = plan.source.gguf_file or f"What {plan.source.title} is converted to ({plan.outtype})"
        message = f"{what} is quantized already, so the build has no unquantized file to compare with."
        raise BadRequest(message, "Start from the 16-bit model, or name a file to compare with, such as BASELINE=Q8_0.")
    return name, plan.base


def plan_unquantized_type(plan: BuildPlan) -> str | None:
    """The type of the file that the quants are made from, such as BF16; None if it is quantized."""
    source = plan.source
    if source.kind == "gguf" and source.is_quantized:
        return None
    if source.kind == "huggingface" and plan.outtype == "q8_0":
        return None
    if source.kind == "gguf":
        return _gguf_type_of_source(source)
    return TYPE_UNKNOWN if plan.outtype == "auto" else plan.outtype.upper()


def _trained_quant_of_source(source: Source) -> str | None:
    """The quant of a GGUF that was trained to be used in it: the file itself is what others are compared with."""
    if source.gguf is None or not is_trained_quantized(source.gguf_file or "", source.gguf):
        return None
    return gguf_quant_name(source.gguf)


def _gguf_type_of_source(source: Source) -> str:
    if source.gguf is None:
        return source.named_quant.name if source.named_quant else TYPE_UNKNOWN
    named = (q.name for q in QUANTS if q.name in UNQUANTIZED and q.ftype == source.gguf.file_type)
    return next(named, TYPE_UNKNOWN)


def read_planned_report(finished: FinishedStage) -> EvalReport:
    """The report that the stage left.

    Raises:
        ResultRefused: the file is not a report.
    """
    return read_stored_output(finished.artifact.folder, "report.json", EvalReport, "is not a report")
