"""The step `report` of a plan: its inputs, its folder, and what is left of it where files failed."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from quantyard.plan.steps import BuildPlan, Step

REPORT: Final = "report"  # the label of the last step
# The stages whose results a report compares.
MEASURING_STAGES: Final = ("evaluate", "divergence", "domains", "behaviour", "speed", "cache", "openvino", "similarity")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def report_step_input(stage: str, label: str) -> str:
    """The name of the report's input with the measurement of one stage and file; see eval/report.py."""
    return f"{stage}-{label}"


def step_without_files(step: Step, lost: Collection[str]) -> Step | None:
    """The step without the files that failed; None if it cannot run without them. A report needs the baseline and at
    least one other file.
    """
    if step.quant in lost:
        return None
    if not lost or step.row.name != REPORT:
        return step
    from quantyard.protocol.evaluation import ReportRequest  # imported late: a build reports nothing

    assert isinstance(step.request, ReportRequest), "as the stage's name says"
    labels = tuple(label for label in step.request.labels if label not in lost)
    if step.request.baseline in lost or len(labels) == 1:
        return None
    kept = {report_step_input(stage, label) for stage in MEASURING_STAGES for label in labels}
    inputs = {name: origin for name, origin in step.inputs.items() if name in kept}
    return replace(step, request=step.request.model_copy(update={"labels": labels}), inputs=inputs)


def is_pointless_step(plan: BuildPlan, step: Step, lost: Collection[str]) -> bool:
    """Whether a step would measure only the baseline, because every file to compare with it has failed."""
    if plan.measuring is None or step.row.name not in MEASURING_STAGES:
        return False
    compared = plan.measuring.labels[1:]
    return bool(compared) and set(compared) <= set(lost)


def plan_suite_folder(suite: str, *, is_foreign: bool = False) -> str:
    """Where the report on a suite is published, relative to the model's folder. `is_foreign`: the report on files that
    somebody else made, beside ours.
    """
    return f"{'compare' if is_foreign else 'eval'}/{_UNSAFE.sub('-', suite).strip('-.') or 'suite'}"
