"""What commands have in common: the request of a command line, its plan, and running it."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from quantyard.cli.output import people, reporter_for
from quantyard.cli.render import build as summary
from quantyard.cli.request import read_request
from quantyard.engines import Engine
from quantyard.engines.registry import choose_engine
from quantyard.errors import BadRequest, HubUnreachable
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import Builder
from quantyard.forecast.cost import Cost, cost_of
from quantyard.forecast.from_manifests import known_times
from quantyard.forecast.time import Conditions, forecast, keep_times
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_plan
from quantyard.plan.calibration_inputs import calibration_of
from quantyard.plan.contamination import evaluation_files
from quantyard.plan.evaluation import add_measuring, measure_options, refuse_unscored
from quantyard.plan.imatrix import Calibration, decided, decisions, trial_and_rest, trial_plan, with_imatrix
from quantyard.plan.steps import BuildPlan
from quantyard.requests import BuildRequest
from quantyard.serve.served_files import offer
from quantyard.sources.resolve import Source, find_source, recall_source, refuse_requantizing
from quantyard.store.artifacts import HashCache, ModelStore


def request_of(args: argparse.Namespace) -> BuildRequest:
    """The request; and what libraries of this process read for themselves is put where they look."""
    request = read_request(args, os.environ)
    os.environ.update(request.environment.proxies or {})
    if bundle := request.environment.ca_bundle:
        os.environ.update(SSL_CERT_FILE=str(bundle), PIP_CERT=str(bundle))
    return request


def engine_of(request: BuildRequest) -> tuple[Engine, str]:
    """The engine, and why this one."""
    return choose_engine(request.engine, request.environment, request.images)


def built_for(
    request: BuildRequest, plan: BuildPlan, *, keep_going: bool = False
) -> tuple[Builder, list[BuiltFile]]:
    """Run what the plan of this request needs, and let its files be what is served."""
    builder, built = run_plan(request, plan, keep_going=keep_going)
    if built and offer(request.artifacts, [file.path for file in built]) is None:
        text = f"Not linked into {request.artifacts}/served. Serve it:  MODEL_FILE={built[0].path} docker compose up"
        people().print(text, markup=False, soft_wrap=True)
    return builder, built


def run_plan(
    request: BuildRequest, plan: BuildPlan, *, keep_going: bool = False
) -> tuple[Builder, list[BuiltFile]]:
    """Show the plan, and run what is left of it. `keep_going`: also where a quant fails."""
    console = people()
    engine, reason = engine_of(request)
    plan = calibrated(request, plan, engine, keep_going=keep_going)
    builder, finished, cost = prepare(request, plan, engine)
    console.print(summary.plan_text(plan, finished, cost, engine.name, reason), soft_wrap=True)
    cost.check_disk(request.artifacts, quants_setting(request))
    builder.keep_going = keep_going
    return builder, _run_timed(request, builder, cost)


def quants_setting(request: BuildRequest) -> str:
    """The setting that names the files."""
    return "QUANTS" if request.matrix_quants else "QUANT"


def _run_timed(request: BuildRequest, builder: Builder, cost: Cost) -> list[BuiltFile]:
    """Run it, and hold its times against the plan's; what a run that fails has finished is learned from too."""
    console, where = people(), Conditions(builder.engine.name, builder.its_room)
    try:
        with reporter_for(console) as reporter:
            return builder.run(reporter)
    finally:
        compared = keep_times(request.artifacts, builder.plan, cost.time, builder.taken, where)
        if compared is not None:
            console.print(summary.time_text(compared), markup=False, soft_wrap=True)


def calibrated(request: BuildRequest, plan: BuildPlan, engine: Engine, *, keep_going: bool = False) -> BuildPlan:
    """The plan with the importance matrix that was asked for. IMATRIX=auto runs its trial now, and says why
    each file got the matrix or not.
    """
    calibration = _calibration(request, plan.source)
    tried = trial_plan(plan, calibration) if calibration and calibration.is_made else None
    if calibration is None or tried is None:
        return _with_matrix(plan, calibration)
    all_of_it = trial_and_rest(tried, _with_matrix(plan, calibration))
    prepare(request, all_of_it, engine)[2].check_disk(request.artifacts, quants_setting(request))
    found = decisions(plan, _trial(request, tried, engine, keep_going=keep_going).output)
    for decision in found.values():
        people().print(f"{decision.quant}: {decision.reason}", markup=False, soft_wrap=True)
    return decided(plan, calibration, found)


def wants_imatrix(request: BuildRequest) -> bool:
    """Whether files are to be made with an importance matrix."""
    return request.imatrix not in ("", "none")


def foreseen(request: BuildRequest, plan: BuildPlan, engine: Engine) -> tuple[Builder, set[str], Cost]:
    """As `prepare`, and nothing runs: where IMATRIX=auto will decide, every file gets the matrix, and the disk holds
    both versions.
    """
    calibration = _calibration(request, plan.source)
    builder, finished, cost = prepare(request, _with_matrix(plan, calibration), engine)
    tried = trial_plan(plan, calibration) if calibration and calibration.is_made else None
    if tried is not None:
        both = prepare(request, trial_and_rest(tried, builder.plan), engine)[2]
        trial_s = both.time.seconds - cost.time.seconds
        cost = replace(cost, disk_needed_bytes=both.disk_needed_bytes, fitting=both.fitting, trial_s=trial_s)
    return builder, finished, cost


def _with_matrix(plan: BuildPlan, calibration: Calibration | None) -> BuildPlan:
    if calibration is None:
        return plan
    return with_imatrix(plan, calibration, [target.quant.name for target in plan.targets])


def _calibration(request: BuildRequest, source: Source) -> Calibration | None:
    if not wants_imatrix(request) and not request.calibration:
        return None
    from quantyard.plan.suites import find_suite  # imported late: no build should wait for a YAML parser

    hashes = HashCache(request.artifacts / ".hashes.json")
    places: list[Path] = []
    if request.measure is not None:
        local = find_suite(request.measure.suite).local if request.measure.suite else None
        # Its files alone: beside a suite there may be anything, this store too.
        places = [local.folder / file.path for file in local.files] if local else []
        places += [request.measure.datasets] if request.measure.datasets else []
    evaluation = evaluation_files(request.artifacts, *places)
    imatrix = request.imatrix or "none"
    calibration = calibration_of(imatrix, request.calibration, hashes, evaluation, request.threads)
    if calibration is None or not calibration.is_made:
        return calibration
    refuse_unscored(source, "calibrated", "Build without a matrix: IMATRIX=none")
    return replace(calibration, n_chunks=request.chunks)


def _trial(request: BuildRequest, plan: BuildPlan, engine: Engine, *, keep_going: bool) -> Builder:
    """Each file with the matrix and without, both measured."""
    builder, _finished, cost = prepare(request, plan, engine)
    builder.keep_going = keep_going
    what = "IMATRIX=auto: each file is made with the matrix and without, and the better one is kept."
    people().print(what, soft_wrap=True)
    _run_timed(request, builder, cost)
    return builder


def prepare(request: BuildRequest, plan: BuildPlan, engine: Engine) -> tuple[Builder, set[str], Cost]:
    """The builder of a plan, which of its steps are finished, and what the rest will cost."""
    store = ModelStore(request.artifacts, plan.source.model)
    builder = Builder(plan, engine, store, REPO_DIR, request.environment.memory_bytes)
    finished = set(builder.find_finished())
    time = forecast(plan, finished, known_times(request.artifacts), Conditions(engine.name, builder.its_room))
    return builder, finished, cost_of(plan, finished, builder.partial_bytes(), request.artifacts, time)


def plan_of(request: BuildRequest, source: Source | None = None) -> BuildPlan:
    """The plan of the build, and of the measuring if it was asked for. A baseline is built like any quant.

    Args:
        source: what MODEL is, where that has been looked up.
    """
    source = source or source_of(request)
    baseline = request.measure and request.measure.baseline
    quants = tuple(dict.fromkeys((baseline, *request.quants))) if baseline else request.quants
    refuse_requantizing(source, quants, request.outtype, allowed=request.allow_requantize)
    options = BuildOptions(
        quants=quants, outtype=request.outtype, allow_pickle=request.allow_pickle,
        allow_requantize=request.allow_requantize, allow_mismatch=request.allow_mismatch, threads=request.threads,
        workers=request.workers, endpoint=request.endpoint, imatrix=wants_imatrix(request),
    )
    plan = make_plan(source, options)
    return add_measuring(plan, measure_options(request, request.measure)) if request.measure else plan


def source_of(request: BuildRequest) -> Source:
    """What MODEL is. A command asks once: on the Hub it may be another commit the next time.

    Raises:
        BadRequest: MODEL is not given.
        BadSource, HubError: it cannot be built from, or not be found.
    """
    if not request.model:
        raise BadRequest("MODEL is not given.", "Name one: make build MODEL=org/name QUANT=Q4_K_M, or try: make demo")
    return _source_of(request)


def _source_of(request: BuildRequest) -> Source:
    """The source; where the Hub is out of reach, the one that an earlier build of the very commit recorded."""
    try:
        return find_source(
            request.model, HubAccess(request.endpoint, request.hf_token), HashCache(request.artifacts / ".hashes.json"),
            allow_pickle=request.allow_pickle, gguf_file=request.gguf_file,
        )
    except HubUnreachable:
        known = recall_source(request.artifacts, request.model)
        if known is None:
            raise
        return known
