"""Turns a request into a plan: the model, the steps, and their cost. Nothing runs here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.engines import Engine
from quantyard.engines.registry import choose_engine
from quantyard.errors import BadRequest, EngineError, HubUnreachable
from quantyard.execution.runner import PlanRunner
from quantyard.files.own_files import typed_file_path
from quantyard.forecast.cost import Cost, forecast_cost
from quantyard.forecast.expected_times import Forecast
from quantyard.hub.access import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.plan.steps import BuildPlan
from quantyard.quants.catalog import Quant
from quantyard.quants.recipe import Recipe
from quantyard.quants.selection import parse_quants
from quantyard.requests import QUEUES, BuildRequest, MeasureRequest
from quantyard.sources.architectures import refuse_unsupported_architecture
from quantyard.sources.projector import find_projector
from quantyard.sources.quantized_source import refuse_unreadable_weights
from quantyard.sources.resolve import Source, find_source, recall_source, refuse_quantized_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import read_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows.kept_matrices import kept_matrices, plan_with_kept_matrices
from quantyard.workflows.results import Planned

if TYPE_CHECKING:
    from quantyard.plan.imatrix import Calibration
    from quantyard.plan.power import PlannedPower

EVAL_SUITE = "quick"  # the default of `eval`
_MATRIX_QUANTS = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"


def plan(request: BuildRequest) -> Planned:
    """Plan a build, with a suite an evaluation, with `matrix_quants` a matrix: steps, disk, memory and time.

    Raises:
        QuantyardError: the request is not valid; see errors.py.
    """
    if request.measure is not None and not request.measure.suite and not request.matrix_quants:
        request = replace(request, measure=None)
    engine, reason = workflow_engine(request)
    if request.matrix_quants:
        request, planned = workflow_matrix_plan(request)
    elif request.measure is not None:  # as `eval`
        request, source = workflow_of_built(request)
        planned = workflow_plan(request, source)
    else:
        planned = workflow_plan(request)
    runner, finished, cost = foreseen_workflow(request, planned, engine)
    nodes = engine.capacity().nodes
    request = replace(request, nodes=request.nodes or (nodes if nodes > 1 else 0))
    return planned_workflow(request, runner.plan, finished, cost, (engine, reason))


def planned_workflow(
    request: BuildRequest, plan: BuildPlan, finished: set[str], cost: Cost, engine: tuple[Engine, str]
) -> Planned:
    """A plan with its cost and engine, as one object."""
    setting = "QUANTS" if request.matrix_quants else "QUANT"
    return Planned(
        plan, frozenset(finished), cost, engine[0].name, engine[1], request.artifacts, setting,
        _powers_of_plan(request, plan), request.nodes,
    )  # fmt: skip


def _powers_of_plan(request: BuildRequest, plan: BuildPlan) -> tuple[PlannedPower, ...]:
    if plan.measuring is None or plan.measuring.suite.similarity is not None:
        return ()
    from quantyard.plan.power import planned_powers  # imported late: a build needs none

    folder = ModelStore(request.artifacts, plan.source.model).folder
    return planned_powers(plan.measuring, read_manifest(folder / "manifest.json"))


def workflow_engine(request: BuildRequest) -> tuple[Engine, str]:
    """The engine, and the reason for it.

    Raises:
        EngineError: the requested engine cannot run.
    """
    if request.engine in QUEUES:
        from quantyard.workflows.cluster import workflow_cluster_engine  # imported late: other engines need none of it

        return workflow_cluster_engine(request), "asked for"
    return choose_engine(request.engine, request.environment, request.images)


def workflow_hub_access(request: BuildRequest) -> HubAccess:
    """The Hub's endpoint and token in this request."""
    return HubAccess(request.endpoint, request.hf_token)


def workflow_hashes(request: BuildRequest) -> HashCache:
    """The cache of file hashes."""
    return HashCache(request.artifacts / ".hashes.json")


def workflow_source(request: BuildRequest) -> Source:
    """The source that MODEL names. A command resolves it once, because the Hub's commit may change in between.

    Raises:
        BadRequest: MODEL is not given.
        BadSource, HubError: the source cannot be used, or not be found.
    """
    if not request.model:
        more = " QUANT=Q4_K_M" if request.command == "build" else ""
        hint = f"Name one: make {request.command} MODEL=org/name{more}, or try: make demo"
        raise BadRequest("MODEL is not given.", hint)
    _refuse_misspelt_request(request)
    return _source_of_request(request)


def _refuse_misspelt_request(request: BuildRequest) -> None:
    """Names that need no model are checked before the network is asked for one.

    Raises:
        BadRequest: IMATRIX is not a file, or a type or a suite does not exist.
    """
    if request.measure is not None and request.measure.suite and not request.measure.suite.endswith(".yaml"):
        from quantyard.plan.suites import find_suite  # imported late: a build reads no YAML

        find_suite(request.measure.suite)
    if request.matrix_quants:
        parse_quants(request.matrix_quants, _recipes_of_request(request), setting="QUANTS")
    if request.imatrix not in ("", "none", "auto"):
        from quantyard.plan.calibration_inputs import check_matrix_exists  # imported late: most builds read none

        check_matrix_exists(typed_file_path(request.imatrix))


def _source_of_request(request: BuildRequest) -> Source:
    """The source; if the Hub is unreachable, the one that an earlier build of the same commit recorded."""
    try:
        return find_source(
            request.model, workflow_hub_access(request), workflow_hashes(request), allow_pickle=request.allow_pickle,
            gguf_file=request.gguf_file,
        )
    except HubUnreachable:
        known = recall_source(request.artifacts, request.model)
        if known is None:
            raise
        return known


def workflow_plan(request: BuildRequest, source: Source | None = None) -> BuildPlan:
    """The plan of the build, with measuring if requested. A baseline is built like any quant.

    Args:
        source: the source that MODEL names, if resolved already.

    Raises:
        BadRequest: it measures in a runtime that the engine does not have; see also errors.py.
    """
    source = source or workflow_source(request)
    baseline = request.measure and request.measure.baseline
    quants = tuple(dict.fromkeys((baseline, *request.quants))) if baseline else request.quants
    if source.kind == "huggingface":
        refuse_unsupported_architecture(source.config, lambda: _architectures_of_converter(request))
        refuse_unreadable_weights(source.title, source.quantization, source.base_model)
    found = None
    if source.kind == "huggingface":
        found = find_projector(
            source.config, source.tensors, request.parts, lambda: _architectures_of_converter(request)
        )
    refuse_quantized_source(source, quants, request.outtype, allowed=request.allow_requantize)
    options = BuildOptions(
        quants=quants, outtype=request.outtype, allow_pickle=request.allow_pickle,
        allow_requantize=request.allow_requantize, allow_mismatch=request.allow_mismatch, threads=request.threads,
        parity=request.parity, allow_twin_mismatch=request.allow_twin_mismatch,
        workers=request.workers, endpoint=request.endpoint, imatrix=_will_have_imatrix(request, source, quants),
        projector=found,
    )
    plan = make_build_plan(source, options)
    if not request.measure:
        return plan
    from quantyard.plan.evaluation import add_measuring_steps, plan_measure_options  # imported late, as it is planned

    plan = add_measuring_steps(plan, plan_measure_options(request, request.measure))
    _refuse_runtime_without_engine(request, plan)
    return plan


def _refuse_runtime_without_engine(request: BuildRequest, plan: BuildPlan) -> None:
    """OpenVINO is installed for ENGINE=local alone: its wheels are too large for every eval image.

    Raises:
        BadRequest: another engine would run the plan.
    """
    if not any(step.row.image == "openvino" for step in plan.steps):
        return
    name = workflow_engine(request)[0].name
    if name != "local":
        message = f"Files are measured in OpenVINO with ENGINE=local, and this is ENGINE={name}."
        raise BadRequest(message, f"Type: make {request.command} … ENGINE=local")


def _will_have_imatrix(request: BuildRequest, source: Source, quants: Sequence[Quant]) -> bool:
    """Whether there will be a matrix: the requested one, or that of each built file that cannot be without."""
    needed = [quant.name for quant in quants if quant.needs_imatrix]
    if workflow_wants_imatrix(request) or not needed:
        return workflow_wants_imatrix(request)
    return set(needed) <= set(kept_matrices(request, source))


def _architectures_of_converter(request: BuildRequest) -> str | None:
    """That of the engine's converter; None where no engine is ready."""
    with suppress(EngineError):
        return workflow_engine(request)[0].converter_list()
    return None


def workflow_files_plan(request: BuildRequest, source: Source | None = None) -> BuildPlan:
    """The plan of the build without measuring: the model and its files."""
    return workflow_plan(replace(request, measure=None), source)


def workflow_of_built(request: BuildRequest) -> tuple[BuildRequest, Source]:
    """The request and its source; without QUANT it is about every file that was built of this source."""
    source = workflow_source(request)
    if request.quants_given:
        return request, source
    manifest = read_manifest(ModelStore(request.artifacts, source.model).folder / "manifest.json")
    if manifest is None or not manifest.quants:
        return request, source
    from quantyard.publish.rebuild import recorded_quant  # imported late: a build publishes nothing

    quants = tuple(recorded_quant(manifest, name) for name in manifest.quants)
    return replace(request, quants=quants, quants_given=True), source


def workflow_matrix_plan(request: BuildRequest) -> tuple[BuildRequest, BuildPlan]:
    """The request with its quants, and its plan. The quants are those of QUANTS, else those of the preset, else one of
    each size; recipes of RECIPE are added.
    """
    source = workflow_source(request)
    default = "auto" if source.use.purpose == "generate" else "none"  # what embeds texts cannot be calibrated
    request = replace(workflow_with_suite(request), imatrix=request.imatrix or default)
    names = request.matrix_quants or (",".join(source.preset.quants) if source.preset else _MATRIX_QUANTS)
    own = tuple(quant for quant in request.quants if quant.recipe)
    quants = parse_quants(names, _recipes_of_request(request), setting="QUANTS")
    request = replace(request, quants=tuple(dict.fromkeys((*quants, *own))), matrix_quants=names)
    return request, workflow_plan(request, source)


def _recipes_of_request(request: BuildRequest) -> list[Recipe]:
    return [quant.recipe for quant in request.quants if quant.recipe]


def workflow_with_suite(request: BuildRequest) -> BuildRequest:
    """The request with a suite: the requested one, else the default."""
    asked = request.measure or MeasureRequest()
    return replace(request, measure=replace(asked, suite=asked.suite or EVAL_SUITE))


def prepare_workflow(request: BuildRequest, plan: BuildPlan, engine: Engine) -> tuple[PlanRunner, set[str], Cost]:
    """The runner of a plan, its finished steps, and the cost of the others."""
    store = ModelStore(request.artifacts, plan.source.model)
    runner = PlanRunner(plan, engine, store, REPO_DIR)
    finished = set(runner.find_finished())
    is_finished = all(step.label in finished for step in plan.steps)
    if request.measure and not is_finished:
        from quantyard.plan.shards import default_shards, plan_in_shards  # imported late: a build measures nothing

        nodes = engine.capacity().nodes
        shards = request.measure.shards or (default_shards(plan, nodes) if nodes > 1 else 1)
        plan = runner.plan = plan_in_shards(plan, finished, shards)
        finished = set(runner.find_finished()) if shards > 1 else finished
    time = Forecast() if is_finished else _workflow_times(request, runner, finished)
    return runner, finished, forecast_cost(plan, finished, runner.partial_bytes(), request.artifacts, time)


def _workflow_times(request: BuildRequest, runner: PlanRunner, finished: Collection[str]) -> Forecast:
    """What the steps that are left are expected to take."""
    from quantyard.forecast.from_manifests import known_forecast_times  # imported late: what is finished needs none
    from quantyard.forecast.time import forecast_conditions, forecast_times

    return forecast_times(runner.plan, finished, known_forecast_times(request.artifacts), forecast_conditions(runner))


def workflow_with_measured(request: BuildRequest, plan: BuildPlan, engine: Engine) -> BuildPlan:
    """The plan whose report is also about what was measured before with the same settings."""
    if plan.measuring is None:
        return plan
    from quantyard.execution.measured_before import with_files_measured_before  # imported late, as above

    return with_files_measured_before(plan, engine, ModelStore(request.artifacts, plan.source.model), REPO_DIR)


# ---- importance matrices -----------------------------------------------------------------------------


def workflow_wants_imatrix(request: BuildRequest) -> bool:
    """Whether the request asks for an importance matrix."""
    return request.imatrix not in ("", "none")


def foreseen_workflow(request: BuildRequest, plan: BuildPlan, engine: Engine) -> tuple[PlanRunner, set[str], Cost]:
    """As `prepare_workflow`, for a plan that does not run: with IMATRIX=auto every file is planned with the matrix, and
    the disk for both versions.
    """
    calibration = workflow_calibration(request, plan.source)
    planned = workflow_plan_with_imatrix(plan_with_kept_matrices(request, plan), calibration)
    planned = workflow_with_measured(request, planned, engine)
    runner, finished, cost = prepare_workflow(request, planned, engine)
    tried = workflow_trial_plan(plan, calibration)
    if tried is not None:
        from quantyard.plan.imatrix import plan_trial_and_rest  # imported late: most builds have no matrix

        both = prepare_workflow(request, plan_trial_and_rest(tried, runner.plan), engine)[2]
        trial_s = both.time.seconds - cost.time.seconds
        cost = replace(cost, disk_needed_bytes=both.disk_needed_bytes, fitting=both.fitting, trial_s=trial_s)
    return runner, finished, cost


def workflow_trial_plan(plan: BuildPlan, calibration: Calibration | None) -> BuildPlan | None:
    """The plan of the trial of IMATRIX=auto; None if there is nothing to decide."""
    if calibration is None or not calibration.is_made:
        return None
    from quantyard.plan.imatrix import plan_imatrix_trial  # imported late: most builds have no matrix

    return plan_imatrix_trial(plan, calibration)


def workflow_plan_with_imatrix(plan: BuildPlan, calibration: Calibration | None) -> BuildPlan:
    """The plan that makes every file with the matrix."""
    if calibration is None:
        return plan
    from quantyard.plan.imatrix import plan_with_imatrix  # imported late: most builds have no matrix

    return plan_with_imatrix(plan, calibration, [target.quant.name for target in plan.targets])


def workflow_calibration(request: BuildRequest, source: Source) -> Calibration | None:
    """The source of the importance matrix; None without one.

    Raises:
        BadRequest: its text contains text of the evaluation.
        NotScored: the model cannot be calibrated.
    """
    if not workflow_wants_imatrix(request) and not request.calibration:
        return None
    from quantyard.plan.calibration_inputs import plan_calibration  # imported late: a build without a matrix needs none
    from quantyard.plan.contamination import plan_contaminating_files
    from quantyard.plan.evaluation import refuse_unscored_plan
    from quantyard.plan.suites import find_suite  # nor should it wait for a YAML parser

    places: list[Path] = []
    if request.measure is not None:
        local = find_suite(request.measure.suite).local if request.measure.suite else None
        # Only the suite's files: its folder may contain anything, this store too.
        places = [local.folder / file.path for file in local.files] if local else []
        places += [request.measure.datasets] if request.measure.datasets else []
    evaluation = plan_contaminating_files(request.artifacts, *places)
    imatrix = request.imatrix or "none"
    calibration = plan_calibration(imatrix, request.calibration, workflow_hashes(request), evaluation, request.threads)
    if calibration is None or not calibration.is_made:
        return calibration
    refuse_unscored_plan(source, "calibrated", "Build without a matrix: IMATRIX=none")
    return replace(calibration, n_chunks=request.chunks)
