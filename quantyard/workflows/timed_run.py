"""Runs a plan, and records the times of its stages for later forecasts."""

from __future__ import annotations

from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import PlanRunner
from quantyard.forecast.cost import Cost
from quantyard.requests import BuildRequest
from quantyard.workflows.reporter import WorkflowReporter


def run_timed_plan(
    request: BuildRequest, runner: PlanRunner, cost: Cost, reporter: WorkflowReporter
) -> list[BuiltFile]:
    """Run it, and record its times beside the forecast. The finished stages of a failed run are recorded too.

    Raises:
        StageFailed, EngineError: see `PlanRunner.run`.
    """
    try:
        with reporter.steps() as steps:
            return runner.run(steps)
    finally:
        if runner.taken:
            from quantyard.forecast.time import forecast_conditions, record_forecast_times  # imported late, as it works

            where = forecast_conditions(runner)
            record_forecast_times(request.artifacts, runner.plan, cost.time, runner.taken, where)
