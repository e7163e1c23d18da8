"""Adds to the plan of a build the steps that measure its files.

    datasets ─► [the build] ─► evaluate <label>… ─► divergence <label>… ─► domains <label>… ─► behaviour <label>…
    ─► speed <label>… ─► cache <label>… ─► report

The data sets come first, so that an unknown task ends the command before a model is converted. The baseline is the file
that the quants are made from, unless BASELINE names another one, which is then built and verified like any quant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest, NotScored
from quantyard.files.own_files import find_file, list_files
from quantyard.formats.gguf import why_gguf_cannot_generate
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, Measuring, ModelFile, Origin, Step, StepOutput
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.behaviour_run import BehaviourRequest
from quantyard.protocol.evaluation import (
    CacheRequest,
    DatasetsRequest,
    DivergenceRequest,
    DomainsRequest,
    EvaluateRequest,
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
from quantyard.quants.catalog import QUANTS, TYPE_UNKNOWN, UNQUANTIZED, Quant
from quantyard.requests import BuildRequest, MeasureRequest
from quantyard.sources.gguf_file import gguf_quant_name, is_trained_quantized
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact, FinishedStage
from quantyard.store.hash_cache import HashCache
from quantyard.store.outputs import read_stored_output

REPORT: Final = "report"  # the label of the last step
# The stages whose results a report compares.
_MEASURING: Final = ("evaluate", "divergence", "domains", "behaviour", "speed", "cache", "similarity")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class MeasureOptions:
    """The settings of a measurement, apart from the plan of the build."""

    suite: Suite
    runtime: Runtime
    files: Artifact | None = None  # the user's own suite: its tasks and text
    datasets: Artifact | None = None  # data sets copied from another machine
    baseline: Quant | None = None
    allow_unsafe_code: bool = False
    endpoint: str | None = None


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
        loaded, measure.tasks or None, measure.limit, measure.num_fewshot, measure.seed, measure.cache_types
    )
    hashes = HashCache(request.artifacts / ".hashes.json")
    return MeasureOptions(
        suite=suite, files=loaded.local,
        runtime=Runtime(threads=request.threads, n_gpu_layers=measure.n_gpu_layers, max_length=measure.max_length),
        datasets=plan_brought_datasets(measure.datasets, hashes) if measure.datasets and suite.needs_network else None,
        baseline=measure.baseline, allow_unsafe_code=measure.allow_unsafe_code, endpoint=request.endpoint,
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
    datasets = _datasets_steps(options)
    measuring = _measuring_steps(options, baseline, files)
    labels = tuple(files)
    request = ReportRequest(title=plan.source.model.name, suite=options.suite, baseline=baseline, labels=labels)
    inputs = {_report_step_input(step.row.name, step.quant): StepOutput(step.label) for step in measuring}
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
        _report_step_input(step.row.name, step.quant): StepOutput(step.label) for step in added
    }
    report = replace(report, request=report.request.model_copy(update={"labels": labels}), inputs=inputs)
    steps = (*plan.steps[:at], *added, report, *plan.steps[at + 1 :])
    return replace(plan, steps=steps, measuring=replace(plan.measuring, labels=labels))


def _measured_step_templates(plan: BuildPlan, baseline: str) -> list[Step]:
    """One step of each measuring stage: the baseline's, or that of the first file where it has none."""
    found: dict[str, Step] = {}
    for step in plan.steps:
        if step.row.name in _MEASURING and (step.row.name not in found or step.quant == baseline):
            found[step.row.name] = step
    return [*found.values()]


def _step_measured_like_baseline(template: Step, label: str, file: ModelFile) -> Step:
    """The baseline's step for another file, which some stages compare with the baseline."""
    request, inputs = template.request, {**template.inputs, "model": file.origin}
    changes: dict[str, str] = {"label": label, "model_file": file.path}
    by_turns = not isinstance(request, SpeedRequest) or request.settings.beside_baseline
    if (
        isinstance(request, SharedBaselineRequest | CacheRequest | SimilarityRequest | SpeedRequest)
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
        "domains": None, "behaviour": None, "speed": None, "cache": None, "similarity": SimilaritySettings(),
    })  # fmt: skip


def report_step_inputs(steps: Sequence[Step], labels: Collection[str]) -> dict[str, Origin]:
    """The inputs of a report on these files: what the plan's steps measure of them."""
    return {
        _report_step_input(step.row.name, step.quant): StepOutput(step.label)
        for step in steps if step.row.name in _MEASURING and step.quant in labels
    }  # fmt: skip


def _report_step_input(stage: str, label: str) -> str:
    """The name of the report's input with the measurement of one stage and file; see eval/report.py."""
    return f"{stage}-{label}"


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


def _datasets_steps(options: MeasureOptions) -> tuple[Step, ...]:
    """The step that fetches data sets; () if the suite does not need any, or DATASETS gives them."""
    suite = options.suite
    if not suite.needs_network or options.datasets or not suite.tasks:
        return ()
    request = DatasetsRequest(
        tasks=tuple(entry.task for entry in suite.tasks), include_path=suite.include_path,
        allow_unsafe_code=options.allow_unsafe_code, endpoint=options.endpoint,
    )
    return (Step("datasets", STAGES["datasets"], request, _suite_input(options, suite.include_path), 0),)


def _suite_input(options: MeasureOptions, path: str | None) -> dict[str, Origin]:
    """The files of the user's suite, for a stage that reads `path` of them."""
    return {"suite": ExternalInput(options.files)} if path is not None and options.files is not None else {}


def _measuring_steps(options: MeasureOptions, baseline: str, files: Mapping[str, ModelFile]) -> list[Step]:
    if options.suite.similarity is not None:
        return [_similarity_step(options, label, file, files[baseline]) for label, file in files.items()]
    steps = [_evaluate_step(options, label, file) for label, file in files.items()]
    if options.suite.divergence is not None:
        steps += [_divergence_step(options, label, file, files[baseline]) for label, file in files.items()]
    if options.suite.domains is not None:
        steps += [_domains_step(options, label, file, files[baseline]) for label, file in files.items()]
    if options.suite.behaviour is not None:
        steps += [_behaviour_step(options, label, file) for label, file in files.items()]
    if options.suite.speed is not None:
        steps += [_speed_step(options, label, file, files[baseline]) for label, file in files.items()]
    if options.suite.cache is not None:
        measured = {label: file for label, file in files.items() if label != baseline} or files
        steps += [_cache_step(options, label, file, files[baseline]) for label, file in measured.items()]
    return steps


def _evaluate_step(options: MeasureOptions, label: str, file: ModelFile) -> Step:
    suite = options.suite
    request = EvaluateRequest(
        label=label, model_file=file.path, tasks=suite.tasks, include_path=suite.include_path,
        apply_chat_template=suite.apply_chat_template,
        thought_tokens=suite.thought_tokens if suite.apply_chat_template else 0, seed=suite.seed,
        allow_unsafe_code=options.allow_unsafe_code, runtime=options.runtime,
    )
    inputs: dict[str, Origin] = {"model": file.origin} | _suite_input(options, suite.include_path)
    if options.datasets is not None:
        inputs["datasets"] = ExternalInput(options.datasets)
    elif _datasets_steps(options):
        inputs["datasets"] = StepOutput("datasets")
    return Step(f"evaluate {label}", STAGES["evaluate"], request, inputs, 0, label)


def _divergence_step(options: MeasureOptions, label: str, file: ModelFile, baseline: ModelFile) -> Step:
    """Perplexity of one file, and its divergence from the baseline if it is another file."""
    settings = options.suite.divergence
    assert settings is not None
    inputs, baseline_file = _step_inputs_beside_baseline(file, baseline)
    request = DivergenceRequest(
        label=label, model_file=file.path, baseline_file=baseline_file, settings=settings, runtime=options.runtime
    )
    inputs |= _suite_input(options, settings.text)
    return Step(f"divergence {label}", STAGES["divergence"], request, inputs, 0, label)


def _domains_step(options: MeasureOptions, label: str, file: ModelFile, baseline: ModelFile) -> Step:
    """Divergence of one file from the baseline by domain, if it is another file."""
    settings = options.suite.domains
    assert settings is not None
    inputs, baseline_file = _step_inputs_beside_baseline(file, baseline)
    request = DomainsRequest(
        label=label, model_file=file.path, baseline_file=baseline_file, settings=settings, runtime=options.runtime
    )
    inputs |= _suite_input(options, settings.texts)
    return Step(f"domains {label}", STAGES["domains"], request, inputs, 0, label)


def _cache_step(options: MeasureOptions, label: str, file: ModelFile, baseline: ModelFile) -> Step:
    """The types of the KV cache on one file, beside itself with f16 and beside the baseline if it is another file."""
    settings = options.suite.cache
    assert settings is not None
    inputs, baseline_file = _step_inputs_beside_baseline(file, baseline)
    request = CacheRequest(
        label=label, model_file=file.path, baseline_file=baseline_file, settings=settings, runtime=options.runtime
    )
    inputs |= _suite_input(options, settings.text)
    return Step(f"cache {label}", STAGES["cache"], request, inputs, 0, label)


def _similarity_step(options: MeasureOptions, label: str, file: ModelFile, baseline: ModelFile) -> Step:
    """Embeddings or scores of one file, and how close they are to those of the baseline if it is another file."""
    settings = options.suite.similarity
    assert settings is not None
    inputs, baseline_file = _step_inputs_beside_baseline(file, baseline)
    request = SimilarityRequest(
        label=label, model_file=file.path, baseline_file=baseline_file, settings=settings, runtime=options.runtime
    )
    return Step(f"similarity {label}", STAGES["similarity"], request, inputs, 0, label)


def _step_inputs_beside_baseline(file: ModelFile, baseline: ModelFile) -> tuple[dict[str, Origin], str | None]:
    """The inputs of a stage that compares a file with the baseline, and the baseline's file: None beside itself."""
    if file == baseline:
        return {"model": file.origin}, None
    return {"model": file.origin, "baseline": baseline.origin}, baseline.path


def _behaviour_step(options: MeasureOptions, label: str, file: ModelFile) -> Step:
    suite, settings = options.suite, options.suite.behaviour
    assert settings is not None
    request = BehaviourRequest(
        label=label, model_file=file.path, settings=settings, thought_tokens=suite.thought_tokens, seed=suite.seed,
        runtime=options.runtime,
    )
    return Step(f"behaviour {label}", STAGES["behaviour"], request, {"model": file.origin}, 0, label)


def _speed_step(options: MeasureOptions, label: str, file: ModelFile, baseline: ModelFile) -> Step:
    """The speed of one file, by turns with the baseline's if the suite says so."""
    settings = options.suite.speed
    assert settings is not None
    inputs, baseline_file = _step_inputs_beside_baseline(file, baseline)
    if not settings.beside_baseline:
        inputs, baseline_file = {"model": file.origin}, None
    request = SpeedRequest(
        label=label, model_file=file.path, baseline_file=baseline_file, settings=settings, runtime=options.runtime
    )
    return Step(f"speed {label}", STAGES["speed"], request, inputs, 0, label)


def step_without_files(step: Step, lost: Collection[str]) -> Step | None:
    """The step without the files that failed; None if it cannot run without them. A report needs the baseline and at
    least one other file.
    """
    if step.quant in lost:
        return None
    if not lost or not isinstance(step.request, ReportRequest):
        return step
    labels = tuple(label for label in step.request.labels if label not in lost)
    if step.request.baseline in lost or len(labels) == 1:
        return None
    kept = {_report_step_input(stage, label) for stage in _MEASURING for label in labels}
    inputs = {name: origin for name, origin in step.inputs.items() if name in kept}
    return replace(step, request=step.request.model_copy(update={"labels": labels}), inputs=inputs)


def is_pointless_step(plan: BuildPlan, step: Step, lost: Collection[str]) -> bool:
    """Whether a step would measure only the baseline, because every file to compare with it has failed."""
    if plan.measuring is None or step.row.name not in _MEASURING:
        return False
    compared = plan.measuring.labels[1:]
    return bool(compared) and set(compared) <= set(lost)


def plan_suite_folder(suite: str, *, is_foreign: bool = False) -> str:
    """Where the report on a suite is published, relative to the model's folder. `is_foreign`: the report on files that
    somebody else made, beside ours.
    """
    return f"{'compare' if is_foreign else 'eval'}/{_UNSAFE.sub('-', suite).strip('-.') or 'suite'}"


def read_planned_report(finished: FinishedStage) -> EvalReport:
    """The report that the stage left.

    Raises:
        ResultRefused: the file is not a report.
    """
    return read_stored_output(finished.artifact.folder, "report.json", EvalReport, "is not a report")
