"""Measures GGUF files that other people made of a model beside ours, against our baseline, after checking them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.errors import FileTooLarge, QuantyardError
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import PlanRunner
from quantyard.files.atomic import write_file_atomically
from quantyard.formatting.numbers import format_bytes
from quantyard.metrics.removals import report_removals
from quantyard.plan.foreign import add_foreign_files, verify_foreign_label
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.base import FileEntry
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.measuring_facts import ForeignFacts
from quantyard.report_page.comparison import render_comparison_page
from quantyard.requests import BuildRequest
from quantyard.sources.foreign_files import ForeignFile, ForeignFiles, find_foreign_files
from quantyard.sources.ollama_store import OllamaName
from quantyard.store.comparison import COMPARISON_FILE, ComparedFile, ComparisonRecord, NotCompared, write_comparison
from quantyard.workflows.planning import (
    prepare_workflow,
    workflow_engine,
    workflow_hashes,
    workflow_hub_access,
    workflow_of_built,
    workflow_plan,
    workflow_with_suite,
)
from quantyard.workflows.reporter import WorkflowReporter
from quantyard.workflows.results import Built, built_result
from quantyard.workflows.run import run_plan

PAGE = "report.html"


@dataclass(frozen=True)
class ComparedFiles:
    """The result of a comparison.

    Attributes:
        built: our files and the report on all files.
        record: every file with its origin, findings and reasons, and what could not be measured.
        failures: the errors of the files and places that could not be measured, by label or place.
        page: the report page; `comparison.json`, which holds `record`, is beside it.
    """

    built: Built
    record: ComparisonRecord
    failures: Mapping[str, QuantyardError]
    page: Path

    @property
    def record_path(self) -> Path:
        """The path of `comparison.json`."""
        return self.page.with_name(COMPARISON_FILE)

    @property
    def report(self) -> EvalReport:
        """The report on all files."""
        return self.record.report


def compare(request: BuildRequest, reporter: WorkflowReporter) -> ComparedFiles:
    """Measure the files of others beside ours; missing files of ours are built first. A file that cannot be had, or is
    not of this model, is left out with its reason.

    Raises:
        BadRequest: REPOS is not given.
        QuantyardError: no file of others could be measured: the first one's error; and see errors.py.
    """
    asked = request.foreign
    assert asked is not None, "the command has it"
    request, source = workflow_of_built(workflow_with_suite(request))
    wanted = asked.wanted or tuple(quant.name for quant in request.quants)
    store, hashes = request.artifacts / "ollama", workflow_hashes(request)

    def pull(name: OllamaName) -> Path:
        from quantyard.publish.registry.ollama import pull_ollama_model

        pull_ollama_model(name, store, asked.docker_config)
        return store

    found = find_foreign_files(replace(asked, wanted=wanted), workflow_hub_access(request), hashes, pull)
    found, plan = _fitting_comparison(request, workflow_plan(request, source), found)
    _refuse_empty_comparison(found.files, found.failures)
    runner, files = run_plan(request, plan, reporter, keep_going=True)
    failures = dict(found.failures) | {label.partition(" ")[2]: error for label, error in runner.failures.items()}
    measured = [file for file in found.files if file.label not in failures]
    _refuse_empty_comparison(measured, failures)
    return _comparison_result(runner, files, measured, failures)


def _refuse_empty_comparison(files: Sequence[ForeignFile], failures: Mapping[str, QuantyardError]) -> None:
    if not files:
        raise next(iter(failures.values()))


def _fitting_comparison(
    request: BuildRequest, plan: BuildPlan, found: ForeignFiles
) -> tuple[ForeignFiles, BuildPlan]:
    """The plan with the files that fit the memory and the disk; the largest ones are left out first."""
    engine, _ = workflow_engine(request)
    failures, memory_bytes = dict(found.failures), engine.capacity().memory_bytes
    kept = list(found.files)
    for file in found.files:
        if file.size_bytes > memory_bytes:
            kept.remove(file)
            failures[file.label] = _too_large_for("memory", file, memory_bytes)
    while True:
        whole = add_foreign_files(plan, kept, request)
        cost = prepare_workflow(request, whole, engine)[2]
        large = max((file for file in kept if file.source.local is None), key=lambda f: f.size_bytes, default=None)
        if cost.fits or large is None:
            return ForeignFiles(tuple(kept), failures), whole
        kept.remove(large)
        failures[large.label] = _too_large_for("disk", large, cost.disk_free_bytes)


def _too_large_for(what: str, file: ForeignFile, there_bytes: int) -> FileTooLarge:
    there = f"{format_bytes(there_bytes)} of {what} are there for all"
    message = f"{file.label} has {format_bytes(file.size_bytes)}, and {there}."
    hint = "Compare it on a larger machine, or leave it out: FILES=…"
    return FileTooLarge(message, hint)


def _comparison_result(
    runner: PlanRunner, files: Sequence[BuiltFile], foreign: Sequence[ForeignFile],
    failures: Mapping[str, QuantyardError],
) -> ComparedFiles:
    built = built_result(runner, files)
    assert built.measured is not None, "files of others were measured beside the baseline"
    report, folder = built.measured.report, built.measured.folder
    record = ComparisonRecord(
        model=built.plan.source.title, commit=built.plan.source.model.commit, baseline=report.baseline,
        files=tuple(_compared_files(runner, files, foreign, report)),
        not_compared=tuple(_not_compared(label, error) for label, error in failures.items()), report=report,
    )  # fmt: skip
    write_comparison(folder, record)
    page = folder / PAGE
    write_file_atomically(page, render_comparison_page(built.manifest, record).encode())
    return ComparedFiles(built, record, dict(failures), page)


def _compared_files(
    runner: PlanRunner, files: Sequence[BuiltFile], foreign: Sequence[ForeignFile], report: EvalReport
) -> list[ComparedFile]:
    """Ours, then those of others, with the reasons against each."""
    removals = report_removals(report)
    ours = [_our_file(file) for file in files if file.quant != report.baseline]
    found = [*ours, *(_their_file(runner, file) for file in foreign)]
    return [
        file.model_copy(update={
            "reasons": removals.get(file.label, ()),
            "on_front": file.label in removals and all(r.name != "DOMINATED_BY" for r in removals[file.label]),
        })
        for file in found
    ]  # fmt: skip


def _our_file(file: BuiltFile) -> ComparedFile:
    entry = FileEntry(path=file.record.file, size_bytes=file.record.size_bytes, sha256=file.record.sha256)
    return ComparedFile(
        label=file.quant, made_by="us", parts=(entry,), sha256=entry.sha256, quant=file.quant,
        size_bytes=entry.size_bytes,
    )


def _their_file(runner: PlanRunner, file: ForeignFile) -> ComparedFile:
    step = verify_foreign_label(file.label)
    facts = ForeignFacts.read(runner.find_finished()[step].result.facts)
    parts = runner.inputs(step, "model")
    return ComparedFile(
        label=file.label, made_by="others", place=file.place, revision=file.revision, parts=parts,
        sha256=parts[0].sha256 if len(parts) == 1 else None, quant=file.quant, size_bytes=file.size_bytes,
        findings=(*file.findings, *facts.findings), worst_error_ratio=facts.worst_error_ratio,
    )


def _not_compared(label: str, error: QuantyardError) -> NotCompared:
    return NotCompared(
        label=label, stage=getattr(error, "stage", ""), kind=error.kind, message=error.message, hint=error.hint,
        exit_code=error.code,
    )
