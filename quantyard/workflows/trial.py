"""The trial of IMATRIX=auto: each file is made with the importance matrix and without, and both are measured."""

from __future__ import annotations

from quantyard.engines import Engine
from quantyard.execution.runner import Builder
from quantyard.plan.imatrix import decided, decisions, trial_and_rest
from quantyard.plan.steps import BuildPlan
from quantyard.requests import BuildRequest
from quantyard.workflows.planning import calibration_for, planned_of, prepare, trial_of, with_matrix
from quantyard.workflows.reporter import ImatrixDecided, Reporter, TrialBegins
from quantyard.workflows.timed_run import run_timed


def settle_imatrix(
    request: BuildRequest, plan: BuildPlan, engine: Engine, reporter: Reporter, *, keep_going: bool = False
) -> BuildPlan:
    """The plan with the importance matrix that was asked for. Where that is to be tried, the trial runs now.

    Args:
        keep_going: also where a file of the trial fails; that file is made without a matrix then.

    Raises:
        NotEnoughDisk: both versions of every file do not fit the disk.
        StageFailed, EngineError: the trial failed.
    """
    calibration = calibration_for(request, plan.source)
    tried = trial_of(plan, calibration)
    if calibration is None or tried is None:
        return with_matrix(plan, calibration)
    all_of_it = trial_and_rest(tried, with_matrix(plan, calibration))
    _builder, finished, cost = prepare(request, all_of_it, engine)
    planned_of(request, all_of_it, finished, cost, (engine, "")).check_disk()
    ran = _run_trial(request, tried, engine, reporter, keep_going=keep_going)
    found = decisions(plan, ran.output)
    if found:
        reporter.tell(ImatrixDecided(tuple(found.values())))
    return decided(plan, calibration, found)


def _run_trial(
    request: BuildRequest, plan: BuildPlan, engine: Engine, reporter: Reporter, *, keep_going: bool
) -> Builder:
    builder, _finished, cost = prepare(request, plan, engine)
    builder.keep_going = keep_going
    reporter.tell(TrialBegins())
    run_timed(request, builder, cost, reporter)
    return builder
