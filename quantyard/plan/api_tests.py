"""Adds to the plan of a build the API test of each of its files, and reads the reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quantyard.plan.build import PROJECTOR
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, Step, StepOutput, Target
from quantyard.protocol.api_tests import ContractReport, ContractRequest
from quantyard.protocol.predictions import FilePredictions
from quantyard.store.manifest import Manifest
from quantyard.store.outputs import read_stored_output


def contract_step_label(quant: str) -> str:
    """The label of the step that tests this file."""
    return f"contract {quant}"


def add_contract_steps(
    plan: BuildPlan, threads: int, measured: Mapping[str, FilePredictions] | None = None
) -> BuildPlan:
    """The plan with an API test for each of its files.

    Args:
        measured: what earlier measurements predicted, by the quant's name; the plan's own come first.
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


def _contract_step(
    target: Target, by_label: Mapping[str, Step], threads: int, measured: Mapping[str, FilePredictions]
) -> Step:
    name, inputs = target.quant.name, {"model": target.file.origin}
    request = ContractRequest(label=name, model_file=target.file.path, threads=threads)
    if PROJECTOR in by_label:
        inputs["projector"] = StepOutput(PROJECTOR)
        request = request.model_copy(update={"has_projector": True})
    if (evaluating := f"evaluate {name}") in by_label:
        inputs["measured"] = StepOutput(evaluating)
        request = request.model_copy(update={"has_measurement": True})
    elif name in measured:
        request = request.model_copy(update={"measured": measured[name]})
    return Step(contract_step_label(name), STAGES["contract"], request, inputs, 0, name)


def read_planned_contract(folder: Path) -> ContractReport:
    """The report that the stage left in this folder.

    Raises:
        ResultRefused: the file is not a valid report.
    """
    return read_stored_output(folder, "report.json", ContractReport, "is not a contract report")
