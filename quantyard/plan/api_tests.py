"""Adds to the plan of a build the API test of each of its files, and reads the reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quantyard.plan.build import PROJECTOR
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, Step, StepOutput, Target
from quantyard.protocol.api_tests import ContractReport, ContractRequest
from quantyard.store.outputs import read_stored_output


def contract_step_label(quant: str) -> str:
    """The label of the step that tests this file."""
    return f"contract {quant}"


def add_contract_steps(plan: BuildPlan, threads: int) -> BuildPlan:
    """The plan with an API test for each of its files."""
    projector = next((step for step in plan.steps if step.label == PROJECTOR), None)
    steps = [_contract_step(target, projector, threads) for target in plan.targets]
    return replace(plan, steps=(*plan.steps, *steps), contracts=tuple(t.quant.name for t in plan.targets))


def _contract_step(target: Target, projector: Step | None, threads: int) -> Step:
    name, inputs = target.quant.name, {"model": target.file.origin}
    request = ContractRequest(label=name, model_file=target.file.path, threads=threads)
    if projector is not None:
        inputs["projector"] = StepOutput(projector.label)
        request = request.model_copy(update={"has_projector": True})
    return Step(contract_step_label(name), STAGES["contract"], request, inputs, 0, name)


def read_planned_contract(folder: Path) -> ContractReport:
    """The report that the stage left in this folder.

    Raises:
        ResultRefused: the file is not a valid report.
    """
    return read_stored_output(folder, "report.json", ContractReport, "is not a contract report")
