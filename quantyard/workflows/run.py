"""Runs the plan of a request: the trial of IMATRIX=auto, then the steps that are left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import PlanRunner
from quantyard.plan.steps import BuildPlan
from quantyard.requests import BuildRequest
from quantyard.serve.served_files import (
    FOLDER,
    is_nothing_served,
    note_unserved,
    put_served_files,
    unserved_files,
)
from quantyard.workflows.planning import (
    planned_workflow,
    prepare_workflow,
    workflow_engine,
    workflow_with_measured,
)
from quantyard.workflows.reporter import LeftOutOfReport, NotOffered, OthersServed, PlanMade, WorkflowReporter
from quantyard.workflows.results import Built, built_result
from quantyard.workflows.timed_run import run_timed_plan
from quantyard.workflows.trial import workflow_imatrix_trial


def run_plan(
    request: BuildRequest, plan: BuildPlan, reporter: WorkflowReporter, *, keep_going: bool = False
) -> tuple[PlanRunner, list[BuiltFile]]:
    """Run the steps of a plan that are left.

    Args:
        keep_going: continue with the other quants if one fails.

    Raises:
        NotEnoughDisk: the disk is too small; nothing of the plan has run.
        StageFailed, EngineError: see `PlanRunner.run`.
    """
    engine, reason = workflow_engine(request)
    plan = workflow_imatrix_trial(request, plan, engine, reporter, keep_going=keep_going)
    plan = workflow_with_measured(request, plan, engine)
    if plan.measuring and (left_out := plan.measuring.left_out):
        measured = [label for label in plan.measuring.labels if label != plan.measuring.baseline]
        reporter.tell(LeftOutOfReport(plan.measuring.suite.name, left_out, measured, request.model))
    runner, finished, cost = prepare_workflow(request, plan, engine)
    planned = planned_workflow(request, runner.plan, finished, cost, (engine, reason))
    reporter.tell(PlanMade(planned))
    planned.check_disk()
    runner.keep_going = keep_going
    return runner, run_timed_plan(request, runner, cost, reporter)


def run_build_plan(
    request: BuildRequest, plan: BuildPlan, reporter: WorkflowReporter, *, keep_going: bool = False
) -> Built:
    """Run the steps of a plan that are left; if nothing is served yet, its files are."""
    runner, files = run_plan(request, plan, reporter, keep_going=keep_going)
    offer_built_files(request, files, runner.projector, reporter)
    return built_result(runner, files)


def offer_built_files(
    request: BuildRequest, files: Sequence[BuiltFile], projector: Sequence[Path], reporter: WorkflowReporter
) -> None:
    """Serve these files, with the first of these projectors, if nothing is served yet; what is served stays, and the
    command that changes it is told.
    """
    paths = [*(file.path for file in files), *projector[:1]]
    unserved = unserved_files(request.artifacts, paths) if files else []
    if not unserved:
        return
    if not is_nothing_served(request.artifacts):
        folder = request.artifacts / FOLDER
        outdated = [path for path in unserved if (folder / path.name).exists()]
        event = OthersServed(request.model, [file.quant for file in files], unserved, outdated)
        note_unserved(request.artifacts, event.text)
        reporter.tell(event)
    elif not put_served_files(request.artifacts, paths):
        reporter.tell(NotOffered(request.artifacts, paths[0]))
