"""Timing this machine, so that plans can tell how long they take before any of it has run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from quantyard.engines import Engine
from quantyard.forecast.benchmark import TRIALS, Bench, time_model
from quantyard.forecast.samples import Sample, keep_book, read_book
from quantyard.requests import BuildRequest
from quantyard.workflows.planning import engine_of
from quantyard.workflows.reporter import Reporter, TimingBegins


@dataclass(frozen=True)
class Timed:
    """What was timed: a sample for each stage that ran, and how long all of it took."""

    engine: str
    seconds: float
    samples: tuple[Sample, ...]


def time_machine(request: BuildRequest, reporter: Reporter) -> Timed:
    """Run the trials, and keep what their stages took in place of what was timed before.

    Raises:
        StageFailed, EngineError: a stage failed.
    """
    engine, _reason = engine_of(request)
    reporter.tell(TimingBegins())
    started = time.monotonic()
    found = _time_all(request, engine, reporter)
    book = read_book(request.artifacts)
    book.replace_synthetic(found)
    keep_book(request.artifacts, book)
    return Timed(engine.name, time.monotonic() - started, tuple(found))


def _time_all(request: BuildRequest, engine: Engine, reporter: Reporter) -> list[Sample]:
    """In a store of its own, of which nothing stays."""
    request.artifacts.mkdir(parents=True, exist_ok=True)
    found: list[Sample] = []
    with TemporaryDirectory(prefix=".rates-", dir=request.artifacts) as folder, reporter.steps() as steps:
        bench = Bench(engine, Path(folder), request.threads)
        for trial in TRIALS:
            found += time_model(trial, bench, steps)
    return found
