"""Adds to the plan of a build the API test of each of its files, and reads the reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, Step
from quantyard.protocol.api_tests import ContractReport, ContractRequest
from quantyard.store.outputs import read_stored_output


def contract_step_label(quant: str) -> str:
    """The label of the step that tests this file."""
    return f"contract {quant}"


def add_contract_steps(plan: BuildPlan, threads: int) -> BuildPlan:
    """The plan with an API test for each of its files."""
    steps = [
        Step(
            contract_step_label(target.quant.name), STAGES["contract"],
            ContractRequest(label=target.quant.name, model_file=target.file.path, threads=threads),
            {"model": target.file.origin}, 0, target.quant.name,
        )
        for target in plan.targets
    ]
    return replace(plan, steps=(*plan.steps, *steps), contracts=tuple(t.quant.name for t in plan.targets))


def read_planned_contract(folder: Path) -> ContractReport:
    """The report that the stage left in this folder.

    Raises:
        ResultRefused: the file is not a valid report.
    """
    return read_stored_output(folder, "report.json", ContractReport, "is not a contract report")
