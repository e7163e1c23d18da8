"""Adds to a plan with another llama.cpp the files of the recorded one: each is measured beside its successor, and each
pair has a report in which the recorded file is the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from quantyard.plan.evaluation import (
    add_measured_files,
    add_measuring_steps,
    report_step_inputs,
)
from quantyard.plan.measuring_steps import MeasureOptions
from quantyard.plan.report_step import REPORT
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Step
from quantyard.protocol.evaluation import ReportRequest
from quantyard.store.artifact import Artifact

_RECORDED: Final = "@recorded"
NEW_CONVERSION: Final = "conversion@new"  # the label of what the new files are made from


def recorded_label(quant: str) -> str:
    """The label of the recorded file of this quant."""
    return f"{quant}{_RECORDED}"


def pair_report_label(quant: str) -> str:
    """The label of the step that compares a file with the recorded one."""
    return f"{REPORT} {quant}"


def plan_beside_recorded(plan: BuildPlan, recorded: Artifact | None, options: MeasureOptions) -> BuildPlan:
    """The plan that measures its files against the recorded conversion, and its own conversion too.

    Args:
        plan: a build without measuring.
        recorded: the recorded conversion; None: there is none, and the plan's own is the baseline.
    """
    if recorded is None or recorded.files == ():
        return add_measuring_steps(plan, options)
    base = ModelFile(ExternalInput(recorded), plan.base.path)
    wide = add_measuring_steps(replace(plan, base=base), options)
    own = {NEW_CONVERSION: plan.base}
    return replace(add_measured_files(wide, own, tuple(own)), base=plan.base, foreign=(*plan.foreign, *own))


def add_recorded_files(plan: BuildPlan, recorded: Mapping[str, Artifact]) -> BuildPlan:
    """The plan that also measures the recorded files, by quant, each an artifact of one file."""
    files = {recorded_label(quant): ModelFile(ExternalInput(a), a.files[0].path) for quant, a in recorded.items()}
    assert plan.measuring is not None, "files are measured"
    wide = add_measured_files(plan, files, (*plan.measuring.labels, *files))
    pairs = tuple(_pair_report_step(wide, quant) for quant in recorded)
    return replace(wide, steps=(*wide.steps, *pairs), foreign=(*plan.foreign, *files))


def _pair_report_step(plan: BuildPlan, quant: str) -> Step:
    """The report on a file and the recorded one, its baseline."""
    assert plan.measuring is not None, "files are measured"
    labels = (recorded_label(quant), quant)
    request = ReportRequest(
        title=f"{plan.source.model.name} {quant}", suite=plan.measuring.suite, baseline=labels[0], labels=labels
    )
    inputs = report_step_inputs(plan.steps, labels)
    return Step(pair_report_label(quant), STAGES["report"], request, inputs, 0, quant)
