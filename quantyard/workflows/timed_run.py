"""One run of a plan, with what it teaches about how long stages take."""

from __future__ import annotations

from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import Builder
from quantyard.forecast.cost import Cost
from quantyard.forecast.time import forecast_conditions, record_forecast_times
from quantyard.requests import BuildRequest
from quantyard.workflows.reporter import Reporter, RunTimed


def run_timed_plan(request: BuildRequest, builder: Builder, cost: Cost, reporter: Reporter) -> list[BuiltFile]:
    """Run it, and compare its times with the plan's. A run that fails teaches too, by the stages that it finished.

    Raises:
        StageFailed, EngineError: see `Builder.run`.
    """
    where = forecast_conditions(builder)
    try:
        with reporter.steps() as steps:
            return builder.run(steps)
    finally:
        compared = record_forecast_times(request.artifacts, builder.plan, cost.time, builder.taken, where)
        if compared is not None:
            reporter.tell(RunTimed(compared))
