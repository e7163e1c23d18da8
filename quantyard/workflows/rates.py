"""Times the stages on this machine, so that plans can forecast their time before the first run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from quantyard.engines import Engine
from quantyard.forecast.benchmark import TRIALS, TimingBench, forecast_benchmark_model
from quantyard.forecast.samples import TimingSample, read_forecast_book, write_forecast_book
from quantyard.requests import BuildRequest
from quantyard.workflows.planning import workflow_engine
from quantyard.workflows.reporter import TimingBegins, WorkflowReporter


@dataclass(frozen=True)
class WorkflowRates:
    """A sample for each stage that ran, and the duration of the whole run."""

    engine: str
    seconds: float
    samples: tuple[TimingSample, ...]


def workflow_rates(request: BuildRequest, reporter: WorkflowReporter) -> WorkflowRates:
    """Run the trials, and replace earlier synthetic samples with theirs.

    Raises:
        StageFailed, EngineError: a stage failed.
    """
    engine, _reason = workflow_engine(request)
    reporter.tell(TimingBegins())
    started = time.monotonic()
    found = _time_all_trials(request, engine, reporter)
    book = read_forecast_book(request.artifacts)
    book.replace_synthetic(found)
    write_forecast_book(request.artifacts, book)
    return WorkflowRates(engine.name, time.monotonic() - started, tuple(found))


def _time_all_trials(request: BuildRequest, engine: Engine, reporter: WorkflowReporter) -> list[TimingSample]:
    """Run in a temporary store."""
    request.artifacts.mkdir(parents=True, exist_ok=True)
    found: list[TimingSample] = []
    with TemporaryDirectory(prefix=".rates-", dir=request.artifacts) as folder, reporter.steps() as steps:
        bench = TimingBench(engine, Path(folder), request.threads)
        for trial in TRIALS:
            found += forecast_benchmark_model(trial, bench, steps)
    return found
