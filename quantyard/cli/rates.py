"""The command that times this machine, so that plans can tell how long they take before any of it has run."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from quantyard.cli.output import people, print_json, reporter_for
from quantyard.cli.render import build as summary
from quantyard.cli.run import engine_of, request_of
from quantyard.engines import Engine
from quantyard.forecast.benchmark import TRIALS, Bench, time_model
from quantyard.forecast.samples import Sample, keep_book, read_book
from quantyard.hardware.machine import cpu_name
from quantyard.requests import BuildRequest


def rates(args: argparse.Namespace) -> None:
    """Run the trials, and keep what their stages took in place of what was timed before."""
    request = request_of(args)
    engine, _reason = engine_of(request)
    what = "Two models of random weights go through every stage, to time it."
    people().print(f"{what} What is said of their quality means nothing.", soft_wrap=True)
    started = time.monotonic()
    found = _time_all(request, engine)
    book = read_book(request.artifacts)
    book.replace_stand_ins(found)
    keep_book(request.artifacts, book)
    seconds = time.monotonic() - started
    if request.json:
        print_json({"engine": engine.name, "seconds": seconds, "stages": [sample.model_dump() for sample in found]})
    else:
        people().print(summary.rates_text(found, seconds), markup=False, soft_wrap=True)


def _time_all(request: BuildRequest, engine: Engine) -> list[Sample]:
    """In a store of its own, of which nothing stays."""
    request.artifacts.mkdir(parents=True, exist_ok=True)
    machine, found = f"{cpu_name()}, {os.cpu_count()} cores", list[Sample]()
    with TemporaryDirectory(prefix=".rates-", dir=request.artifacts) as folder, reporter_for(people()) as reporter:
        for trial in TRIALS:
            bench = Bench(engine, Path(folder), request.threads, machine)
            found += time_model(trial, bench, reporter)
    return found
