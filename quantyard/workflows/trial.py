"""The trial of IMATRIX=auto: each file is made with the importance matrix and without, and both are measured."""

from __future__ import annotations

from quantyard.engines import Engine
from quantyard.execution.runner import PlanRunner
from quantyard.plan.steps import BuildPlan
from quantyard.requests import BuildRequest
from quantyard.workflows.kept_matrices import plan_with_kept_matrices
from quantyard.workflows.planning import (
    planned_workflow,
    prepare_workflow,
    workflow_calibration,
    workflow_plan_with_imatrix,
    workflow_trial_plan,
)
from quantyard.workflows.reporter import ImatrixDecided, TrialBegins, WorkflowReporter
from quantyard.workflows.timed_run import run_timed_plan


def workflow_imatrix_trial(
    request: BuildRequest, plan: BuildPlan, engine: Engine, reporter: WorkflowReporter, *, keep_going: bool = False
) -> BuildPlan:
    """The plan with the requested importance matrix. With IMATRIX=auto the trial runs now.

    Args:
        keep_going: continue if a file of the trial fails; that file is then made without a matrix.

    Raises:
        NotEnoughDisk: both versions of every file do not fit the disk.
        StageFailed, EngineError: the trial failed.
    """
    calibration = workflow_calibration(request, plan.source)
    tried = workflow_trial_plan(plan, calibration)
    if calibration is None:
        return plan_with_kept_matrices(request, plan)
    if tried is None:
        return workflow_plan_with_imatrix(plan, calibration)
    from quantyard.plan.imatrix import (  # imported late: most builds have no matrix
        plan_as_decided,
        plan_imatrix_decisions,
        plan_trial_and_rest,
    )

    all_of_it = plan_trial_and_rest(tried, workflow_plan_with_imatrix(plan, calibration))
    _builder, finished, cost = prepare_workflow(request, all_of_it, engine)
    planned_workflow(request, all_of_it, finished, cost, (engine, "")).check_disk()
    ran = _run_trial(request, tried, engine, reporter, keep_going=keep_going)
    found = plan_imatrix_decisions(plan, ran.output)
    if found:
        reporter.tell(ImatrixDecided(tuple(found.values())))
    return plan_as_decided(plan, calibration, found)


def _run_trial(
    request: BuildRequest, plan: BuildPlan, engine: Engine, reporter: WorkflowReporter, *, keep_going: bool
) -> PlanRunner:
    runner, _finished, cost = prepare_workflow(request, plan, engine)
    runner.keep_going = keep_going
    reporter.tell(TrialBegins())
    run_timed_plan(request, runner, cost, reporter)
    return runner
