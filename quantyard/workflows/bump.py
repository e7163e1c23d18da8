"""Builds and measures a model with another llama.cpp beside the recorded one, and says what changed, file by file.

Everything happens in a store of its own, `artifacts/bump/<llama.cpp>`, so nothing recorded is replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest, StageFailed
from quantyard.execution.runner import PlanRunner
from quantyard.files.own_files import kind_of_path, typed_file_path
from quantyard.formats.names import safe_file_name
from quantyard.metrics.regression import MetricChange, file_change
from quantyard.plan.evaluation import plan_measure_options, read_planned_report
from quantyard.plan.imatrix import CALIBRATE
from quantyard.plan.regression import (
    NEW_CONVERSION,
    add_recorded_files,
    pair_report_label,
    plan_beside_recorded,
    recorded_label,
)
from quantyard.plan.steps import BuildPlan
from quantyard.plan.suites import BUILTIN
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import EvalReport
from quantyard.requests import BuildRequest
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact
from quantyard.store.lend import lend_finished_stages, link_beside_store
from quantyard.store.manifest import Manifest, read_manifest, write_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import (
    workflow_engine,
    workflow_of_built,
    workflow_plan,
    workflow_source,
    workflow_with_suite,
)
from quantyard.workflows.reporter import WorkflowReporter
from quantyard.workflows.run import run_plan

_CONVERT: Final = "convert"
_LENT: Final = ("fetch", "datasets")  # what other tools do not make anew


@dataclass(frozen=True)
class Bumped:
    """What another llama.cpp changes.

    Attributes:
        llama_cpp: as it was named; "" for the configured one.
        recorded_tools, tools: what the engine says of the recorded tools and of these.
        same_conversion: whether the converted model has the same bytes; None for a GGUF, which is not converted.
        conversion_kld: the mean divergence of the new conversion from the recorded one, in nats; None: not measured.
        changes: of each file, in the recorded order.
        failures: the errors of steps that failed, by label.
        store: the folder of the new files; nothing of it is in artifacts.
        report: the report on all changed files and the recorded ones; None if no file changed.
    """

    model: str
    llama_cpp: str
    recorded_tools: Mapping[str, str]
    tools: Mapping[str, str]
    same_conversion: bool | None
    changes: tuple[MetricChange, ...]
    store: Path
    conversion_kld: Estimate | None = None
    failures: Mapping[str, StageFailed] = field(default_factory=dict)
    report: EvalReport | None = None

    @property
    def is_worse(self) -> bool:
        """Whether a file got worse, or cannot be made or measured any more."""
        return bool(self.failures) or any(change.is_worse for change in self.changes)


def bump(request: BuildRequest, reporter: WorkflowReporter) -> Bumped:
    """Build the recorded files with another llama.cpp, and measure those whose bytes changed beside the recorded ones.

    Raises:
        BadRequest: nothing was built yet, or LLAMA_CPP does not name what the engine can use.
        StageFailed: the model cannot be converted any more.
        QuantyardError: see errors.py.
    """
    source = workflow_source(request)
    recorded = ModelStore(request.artifacts, source.model)
    manifest = _recorded_manifest(recorded, request)
    request = _with_recorded_suite(workflow_of_built(replace(request, quants_given=request.quants_given))[0], manifest)
    new = _request_with_llama_cpp(request)
    store = ModelStore(new.artifacts, source.model)
    _seed_bump_store(recorded, store, manifest)
    built, failures = _run_bump_plan(new, workflow_plan(replace(new, measure=None), source), reporter)
    made = _files_made_by_bump(built)
    changed = [q.name for q in new.quants if q.name in made and made[q.name] != manifest.quants[q.name].sha256]
    report, pairs = None, dict[str, EvalReport]()
    if changed:
        files = _recorded_artifacts(recorded, manifest, changed)
        base = None if _is_same_conversion(manifest, built) else _recorded_conversion(recorded, manifest)
        measured = _measure_changed_files(new, source, files, base, reporter)
        failures |= measured.failures
        report, pairs = measured.measured.report if measured.measured else None, _reports_on_pairs(measured, changed)
    before = {quant.name: manifest.quants[quant.name].sha256 for quant in new.quants}
    return Bumped(
        model=source.title, llama_cpp=request.llama_cpp, recorded_tools=_tools_of_bump(manifest),
        tools=_tools_of_bump(read_manifest(_bump_manifest_path(store))),
        same_conversion=_is_same_conversion(manifest, built), store=store.folder,
        conversion_kld=_new_conversion_kld(report), failures=failures, report=report,
        changes=tuple(
            file_change(name, sha256, made.get(name, ""), report, recorded_label(name), pairs.get(name))
            for name, sha256 in before.items()
        ),
    )  # fmt: skip


def _new_conversion_kld(report: EvalReport | None) -> Estimate | None:
    measured = report.measurements if report else ()
    found = next((m.divergence for m in measured if m.file.label == NEW_CONVERSION), None)
    return found.mean_kld if found else None


def _bump_manifest_path(store: ModelStore) -> Path:
    return store.folder / "manifest.json"


def _recorded_manifest(store: ModelStore, request: BuildRequest) -> Manifest:
    manifest = read_manifest(_bump_manifest_path(store))
    if manifest is None or not manifest.quants:
        message = f"Nothing was built of {request.model} at this commit, so there is nothing to compare with."
        raise BadRequest(message, f"Build and measure it first: make eval MODEL={request.model} QUANT=Q4_K_M")
    asked = [quant.name for quant in request.quants] if request.quants_given else []
    if missing := [name for name in asked if name not in manifest.quants]:
        built = ", ".join(manifest.quants)
        message = f"{', '.join(missing)} was not built with the recorded llama.cpp; built: {built}."
        raise BadRequest(message, f"Name one of them: QUANT={next(iter(manifest.quants))}")
    return manifest


def _with_recorded_suite(request: BuildRequest, manifest: Manifest) -> BuildRequest:
    """The request with a suite: the asked one, else the first that was recorded, else the default."""
    asked = request.measure
    known = (name.partition("+")[0] for name in manifest.evaluations)
    if asked is not None and not asked.suite and (suite := next((name for name in known if name in BUILTIN), "")):
        request = replace(request, measure=replace(asked, suite=suite))
    return workflow_with_suite(request)


# ---- the other llama.cpp -----------------------------------------------------------------------------


def _request_with_llama_cpp(request: BuildRequest) -> BuildRequest:
    """The request in the store of its own, with the tools that LLAMA_CPP names.

    Raises:
        BadRequest: the local engine needs the folder of a virtual environment.
    """
    named = request.llama_cpp
    slug = safe_file_name(named, "configured")[-40:].strip("-.")
    mark = hashlib.sha256(named.encode()).hexdigest()[:8]
    new = replace(request, artifacts=request.artifacts / "bump" / f"{slug}-{mark}")
    if not named:
        return new
    if workflow_engine(request)[0].name == "local":
        brought = replace(new.environment, local_venv=_venv_named_for_bump(named), brought_venv=True)
        return replace(new, environment=brought)
    base = _image_named_for_bump(named, request.images.bases["builder"])
    bases = {name: base if name in ("builder", "contract") else other for name, other in request.images.bases.items()}
    return replace(new, images=replace(request.images, bases=bases))


def _venv_named_for_bump(named: str) -> Path:
    path = typed_file_path(named).absolute()
    if kind_of_path(path / "bin" / "python") != "file":
        message = f"LLAMA_CPP={named} is not the folder of a virtual environment, which ENGINE=local needs."
        hint = (
            "Make one with another llama-cpp-python: scripts/setup-local.sh local /path/to/venv && "
            "/path/to/venv/bin/pip install llama-cpp-python==VERSION; then type: LLAMA_CPP=/path/to/venv"
        )
        raise BadRequest(message, hint)
    return path


def _image_named_for_bump(named: str, configured: str) -> str:
    """An image as it is named; a tag alone is one of the configured image."""
    if "/" in named or "@" in named or ":" in named:
        return named
    return f"{configured.rpartition(':')[0]}:{named}"


# ---- build and measure -------------------------------------------------------------------------------


def _seed_bump_store(recorded: ModelStore, store: ModelStore, manifest: Manifest) -> None:
    """What does not depend on llama.cpp: downloads, and which files were made with which importance matrix."""
    lend_finished_stages(recorded, store, _LENT)
    for name in manifest.imatrices:
        link_beside_store(recorded.folder / name, store.folder / name)
    if not _bump_manifest_path(store).exists():
        store.folder.mkdir(parents=True, exist_ok=True)
        stages = {label: record for label, record in manifest.stages.items() if label == CALIBRATE}
        seed = {"stages": stages, "evaluations": {}, "contracts": {}, "gate": None}
        write_manifest(_bump_manifest_path(store), manifest.model_copy(update=seed))


def _run_bump_plan(
    request: BuildRequest, plan: BuildPlan, reporter: WorkflowReporter
) -> tuple[PlanRunner, dict[str, StageFailed]]:
    runner, _files = run_plan(request, plan, reporter, keep_going=True)
    return runner, dict(runner.failures)


def _files_made_by_bump(runner: PlanRunner) -> dict[str, str]:
    """Quant → SHA-256 of each file that was made and verified."""
    finished, made = runner.find_finished(), dict[str, str]()
    for target in runner.plan.targets:
        if target.verified_by in finished:
            files = runner.inputs(target.verified_by, "model")
            made[target.quant.name] = next(f.sha256 or "" for f in files if f.path == target.file.path)
    return made


def _recorded_artifacts(store: ModelStore, manifest: Manifest, quants: list[str]) -> dict[str, Artifact]:
    """The recorded files, by quant.

    Raises:
        BadRequest: one is gone.
    """
    found = dict[str, Artifact]()
    for quant in quants:
        record = manifest.quants[quant]
        entry = FileEntry(path=record.file, size_bytes=record.size_bytes, sha256=record.sha256)
        if not (store.folder / record.file).is_file():
            message = f"The recorded file of {quant} is missing: {store.folder / record.file}."
            raise BadRequest(message, f"Make it again with the recorded llama.cpp, or leave it out: QUANT={quant}")
        found[quant] = Artifact(files_digest((entry,)), (entry,), store.folder, whole_folder=False)
    return found


def _recorded_conversion(store: ModelStore, manifest: Manifest) -> Artifact | None:
    """What the recorded files were made from; None for a GGUF, or if it is gone."""
    made = manifest.stages.get(_CONVERT)
    found = store.finished(_CONVERT, made.key) if made else None
    return found.artifact if found else None


def _measure_changed_files(
    request: BuildRequest, source: Source, recorded: Mapping[str, Artifact], base: Artifact | None,
    reporter: WorkflowReporter,
) -> PlanRunner:
    """Measure new and recorded files against the recorded conversion: a converter that loses something would look good
    beside its own result.
    """
    quants = tuple(quant for quant in request.quants if quant.name in recorded)
    assert request.measure is not None, "a bump measures"
    plan = workflow_plan(replace(request, quants=quants, measure=None), source)
    plan = plan_beside_recorded(plan, base, plan_measure_options(request, request.measure))
    return _run_bump_plan(request, add_recorded_files(plan, recorded), reporter)[0]


def _reports_on_pairs(runner: PlanRunner, quants: list[str]) -> dict[str, EvalReport]:
    finished = runner.find_finished()
    labels = {quant: pair_report_label(quant) for quant in quants}
    return {quant: read_planned_report(finished[label]) for quant, label in labels.items() if label in finished}


def _is_same_conversion(manifest: Manifest, runner: PlanRunner) -> bool | None:
    recorded = manifest.stages.get(_CONVERT)
    if recorded is None or not any(step.label == _CONVERT for step in runner.plan.steps):
        return None
    before, after = (
        {file.path: file.sha256 for file in files if file.path.endswith(".gguf")}
        for files in (recorded.outputs, runner.outputs(_CONVERT))
    )
    return before == after


def _tools_of_bump(manifest: Manifest | None) -> dict[str, str]:
    """The engine's words on the tools that converted, quantized or verified, and llama.cpp's version."""
    stages = manifest.stages if manifest else {}
    made = [record for record in stages.values() if record.request.get("stage") in ("convert", "quantize", "verify")]
    found = dict[str, str]()
    for record in made:
        found |= {key: value for key, value in (record.ran_by | record.tools).items() if key != "packages"}
    return found
