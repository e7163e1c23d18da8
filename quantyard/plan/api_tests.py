"""Adds to the plan of a build the API test of each of its files, and reads the reports."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from quantyard.errors import ResultRefused
from quantyard.plan.build import PROJECTOR
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, Origin, Step, StepOutput, Target
from quantyard.protocol.api_tests import ContractReport, ContractRequest
from quantyard.protocol.predictions import FilePredictions
from quantyard.protocol.task_results import Evaluation
from quantyard.store.artifact import Artifact
from quantyard.store.manifest import Manifest
from quantyard.store.outputs import read_stored_output
from quantyard.store.stages import ModelStore


def contract_step_label(quant: str) -> str:
    """The label of the step that tests this file."""
    return f"contract {quant}"


def add_contract_steps(
    plan: BuildPlan, threads: int, measured: Mapping[str, FilePredictions | Artifact] | None = None
) -> BuildPlan:
    """The plan with an API test for each of its files.

    Args:
        measured: what earlier measurements predicted, or the evaluation itself, by the quant's name; the plan's own
            come first.
    """
    by_label = {step.label: step for step in plan.steps}
    steps = [_contract_step(target, by_label, threads, measured or {}) for target in plan.targets]
    return replace(plan, steps=(*plan.steps, *steps), contracts=tuple(t.quant.name for t in plan.targets))


def measured_predictions(manifest: Manifest) -> dict[str, FilePredictions]:
    """What the last measurement of each file predicted, by the quant's name; none of a file that was made since."""
    return {
        name: found.predictions
        for report in manifest.evaluations.values() for found in report.measurements
        if found.predictions and (record := manifest.quants.get(name := found.file.label))
        and found.file.sha256 in (record.sha256, None)
    }  # fmt: skip


def kept_evaluations(
    manifest: Manifest, store: ModelStore, measured: Mapping[str, FilePredictions]
) -> dict[str, Artifact]:
    """The evaluations that predicted this and are still in the store. A test against one of them has the key of the
    test in a release, which is then not repeated.
    """
    kept = {}
    for name, predictions in measured.items():
        record = manifest.stages.get(label := f"evaluate {name}")
        if record and (found := store.finished(label, record.key)):
            with suppress(ResultRefused):  # of another version
                evaluation = read_stored_output(found.artifact.folder, "evaluation.json", Evaluation, "is not one")
                if evaluation.predictions == predictions:
                    kept[name] = found.artifact
    return kept


def _contract_step(
    target: Target, by_label: Mapping[str, Step], threads: int, measured: Mapping[str, FilePredictions | Artifact]
) -> Step:
    name = target.quant.name
    inputs: dict[str, Origin] = {"model": target.file.origin}
    request = ContractRequest(label=name, model_file=target.file.path, threads=threads)
    if PROJECTOR in by_label:
        inputs["projector"] = StepOutput(PROJECTOR)
        request = request.model_copy(update={"has_projector": True})
    if (evaluating := f"evaluate {name}") in by_label:
        inputs["measured"] = StepOutput(evaluating)
        request = request.model_copy(update={"has_measurement": True})
    elif isinstance(found := measured.get(name), Artifact):
        inputs["measured"] = ExternalInput(found)
        request = request.model_copy(update={"has_measurement": True})
    elif found:
        request = request.model_copy(update={"measured": found})
    return Step(contract_step_label(name), STAGES["contract"], request, inputs, 0, name)


def read_planned_contract(folder: Path) -> ContractReport:
    """The report that the stage left in this folder.

    Raises:
        ResultRefused: the file is not a valid report.
    """
    return read_stored_output(folder, "report.json", ContractReport, "is not a contract report")
