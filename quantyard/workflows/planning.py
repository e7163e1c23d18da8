"""From a request to its plan: which model it is, what would run, what that takes. Nothing runs here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quantyard.engines import Engine
from quantyard.engines.registry import choose_engine
from quantyard.errors import BadRequest, HubUnreachable
from quantyard.execution.runner import Builder
from quantyard.forecast.cost import Cost, cost_of
from quantyard.forecast.from_manifests import known_times
from quantyard.forecast.time import conditions_of, forecast
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_plan
from quantyard.plan.calibration_inputs import calibration_of
from quantyard.plan.contamination import evaluation_files
from quantyard.plan.evaluation import add_measuring, measure_options, refuse_unscored
from quantyard.plan.imatrix import Calibration, trial_and_rest, trial_plan, with_imatrix
from quantyard.plan.steps import BuildPlan
from quantyard.quants.selection import parse_list
from quantyard.requests import BuildRequest, MeasureRequest
from quantyard.sources.resolve import Source, find_source, recall_source, refuse_requantizing
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore
from quantyard.workflows.results import Planned

EVAL_SUITE = "quick"  # what is measured where no suite is asked for
_MATRIX_QUANTS = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"


def plan(request: BuildRequest) -> Planned:
    """What the request would run, need and take: a build; with a suite an evaluation; with `matrix_quants` a matrix.

    Raises:
        QuantyardError: the request cannot be met; see errors.py.
    """
    if request.measure is not None and not request.measure.suite and not request.matrix_quants:
        request = replace(request, measure=None)
    engine, reason = engine_of(request)
    request, planned = matrix_plan(request) if request.matrix_quants else (request, plan_of(request))
    builder, finished, cost = foreseen(request, planned, engine)
    return planned_of(request, builder.plan, finished, cost, (engine, reason))


def planned_of(
    request: BuildRequest, plan: BuildPlan, finished: set[str], cost: Cost, engine: tuple[Engine, str]
) -> Planned:
    """All that is known of a plan in one object."""
    setting = "QUANTS" if request.matrix_quants else "QUANT"
    return Planned(plan, frozenset(finished), cost, engine[0].name, engine[1], request.artifacts, setting)


def engine_of(request: BuildRequest) -> tuple[Engine, str]:
    """The engine, and why this one.

    Raises:
        EngineError: the engine that was asked for cannot run.
    """
    return choose_engine(request.engine, request.environment, request.images)


def hub_access(request: BuildRequest) -> HubAccess:
    """How the Hub is asked."""
    return HubAccess(request.endpoint, request.hf_token)


def hashes_of(request: BuildRequest) -> HashCache:
    """The hashes of files that were read before."""
    return HashCache(request.artifacts / ".hashes.json")


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
            request.model, hub_access(request), hashes_of(request), allow_pickle=request.allow_pickle,
            gguf_file=request.gguf_file,
        )
    except HubUnreachable:
        known = recall_source(request.artifacts, request.model)
        if known is None:
            raise
        return known


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


def files_plan(request: BuildRequest) -> BuildPlan:
    """The plan of the build alone: which model it is, and where its files are."""
    return plan_of(replace(request, measure=None))


def matrix_plan(request: BuildRequest) -> tuple[BuildRequest, BuildPlan]:
    """The request with its quants, and its plan. QUANTS decides; else what the preset recommends, else one of each
    size. Recipes of RECIPE come beside them.
    """
    source = source_of(request)
    request = replace(measured(request), imatrix=request.imatrix or "auto")
    names = request.matrix_quants or (",".join(source.preset.quants) if source.preset else _MATRIX_QUANTS)
    own = tuple(quant for quant in request.quants if quant.recipe)
    quants = parse_list(names, [quant.recipe for quant in own if quant.recipe], setting="QUANTS")
    request = replace(request, quants=tuple(dict.fromkeys((*quants, *own))), matrix_quants=names)
    return request, plan_of(request, source)


def measured(request: BuildRequest) -> BuildRequest:
    """The request with something to measure: the suite asked for, else the default one."""
    asked = request.measure or MeasureRequest()
    return replace(request, measure=replace(asked, suite=asked.suite or EVAL_SUITE))


def prepare(request: BuildRequest, plan: BuildPlan, engine: Engine) -> tuple[Builder, set[str], Cost]:
    """The builder of a plan, which of its steps are finished, and what the rest will cost."""
    store = ModelStore(request.artifacts, plan.source.model)
    builder = Builder(plan, engine, store, REPO_DIR)
    finished = set(builder.find_finished())
    time = forecast(plan, finished, known_times(request.artifacts), conditions_of(builder))
    return builder, finished, cost_of(plan, finished, builder.partial_bytes(), request.artifacts, time)


# ---- importance matrices -----------------------------------------------------------------------------


def wants_imatrix(request: BuildRequest) -> bool:
    """Whether files are to be made with an importance matrix."""
    return request.imatrix not in ("", "none")


def foreseen(request: BuildRequest, plan: BuildPlan, engine: Engine) -> tuple[Builder, set[str], Cost]:
    """As `prepare`, and nothing runs: where IMATRIX=auto will decide, every file gets the matrix, and the disk holds
    both versions.
    """
    calibration = calibration_for(request, plan.source)
    builder, finished, cost = prepare(request, with_matrix(plan, calibration), engine)
    tried = trial_of(plan, calibration)
    if tried is not None:
        both = prepare(request, trial_and_rest(tried, builder.plan), engine)[2]
        trial_s = both.time.seconds - cost.time.seconds
        cost = replace(cost, disk_needed_bytes=both.disk_needed_bytes, fitting=both.fitting, trial_s=trial_s)
    return builder, finished, cost


def trial_of(plan: BuildPlan, calibration: Calibration | None) -> BuildPlan | None:
    """The plan of the trial that decides about the matrix; None where there is nothing to decide."""
    return trial_plan(plan, calibration) if calibration and calibration.is_made else None


def with_matrix(plan: BuildPlan, calibration: Calibration | None) -> BuildPlan:
    """The plan that makes every file with the matrix."""
    if calibration is None:
        return plan
    return with_imatrix(plan, calibration, [target.quant.name for target in plan.targets])


def calibration_for(request: BuildRequest, source: Source) -> Calibration | None:
    """Where the request's matrix comes from; None: there is none.

    Raises:
        BadRequest: the text of it has words of the evaluation.
        NotScored: the model cannot be calibrated.
    """
    if not wants_imatrix(request) and not request.calibration:
        return None
    from quantyard.plan.suites import find_suite  # imported late: no build should wait for a YAML parser

    places: list[Path] = []
    if request.measure is not None:
        local = find_suite(request.measure.suite).local if request.measure.suite else None
        # Its files alone: beside a suite there may be anything, this store too.
        places = [local.folder / file.path for file in local.files] if local else []
        places += [request.measure.datasets] if request.measure.datasets else []
    evaluation = evaluation_files(request.artifacts, *places)
    imatrix = request.imatrix or "none"
    calibration = calibration_of(imatrix, request.calibration, hashes_of(request), evaluation, request.threads)
    if calibration is None or not calibration.is_made:
        return calibration
    refuse_unscored(source, "calibrated", "Build without a matrix: IMATRIX=none")
    return replace(calibration, n_chunks=request.chunks)
