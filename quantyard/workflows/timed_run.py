"""One run of a plan, with what it teaches about how long stages take."""

from __future__ import annotations

from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import PlanRunner
from quantyard.forecast.cost import Cost
from quantyard.forecast.time import forecast_conditions, record_forecast_times
from quantyard.requests import BuildRequest
from quantyard.workflows.reporter import RunTimed, WorkflowReporter


def run_timed_plan(
    request: BuildRequest, runner: PlanRunner, cost: Cost, reporter: WorkflowReporter
) -> list[BuiltFile]:
    """Run it, and compare its times with the plan's. A run that fails teaches too, by the stages that it finished.

    Raises:
        StageFailed, EngineError: see `PlanRunner.run`.
    """
    where = forecast_conditions(runner)
    try:
        with reporter.steps() as steps:
            return runner.run(steps)
    finally:
        compared = record_forecast_times(request.artifacts, runner.plan, cost.time, runner.taken, where)
        if compared is not None:
            reporter.tell(RunTimed(compared))
