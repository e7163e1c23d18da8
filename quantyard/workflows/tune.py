"""Searches the best mix of tensor types for a file size or a divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import PlanRunner
from quantyard.files.atomic import write_file_atomically
from quantyard.formats.gguf import read_gguf_model
from quantyard.formatting.numbers import format_exact_bytes
from quantyard.plan.contamination import plan_contaminating_files
from quantyard.plan.evaluation import plan_unquantized_type, refuse_unscored_plan
from quantyard.plan.imatrix import read_planned_divergence
from quantyard.plan.steps import BuildPlan, Target
from quantyard.quants.catalog import find_quant
from quantyard.quants.exact_sizes import Sizes, stock_quant_sizes
from quantyard.quants.recipe import Recipe
from quantyard.quants.selection import quant_of_recipe
from quantyard.requests import BuildRequest, TuneRequest
from quantyard.tune.goal import (
    HeldOutFile,
    TuningGain,
    TuningGoal,
    find_tuned_mix,
    tuning_gain,
    tuning_goal,
    tuning_held_out_plan,
    tuning_yardstick,
)
from quantyard.tune.knapsack import TypeMix, tuning_mix_front
from quantyard.tune.recipe_text import tuned_recipe_text
from quantyard.tune.sensitivity import (
    Probing,
    Sensitivity,
    group_sensitivities,
    sensitivity_high_plan,
    sensitivity_high_step,
    sensitivity_probe_label,
    sensitivity_probe_plan,
    sensitivity_probe_step,
    tuned_recipe,
    tuning_fixed_bytes,
    tuning_options,
)
from quantyard.tune.tensor_groups import TensorGroup, tuning_tensor_groups
from quantyard.tune.text import tuning_text
from quantyard.tune.type_errors import HIGH, read_rounding_errors, tuning_type_ladder
from quantyard.workflows.planning import prepare_workflow, workflow_engine, workflow_plan
from quantyard.workflows.reporter import MixMeasured, SearchRuns, WorkflowReporter
from quantyard.workflows.results import Built, built_result
from quantyard.workflows.run import offer_built_files, run_plan

_ROUNDS = 3  # of correcting the expected divergence by the measured one


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        goal: the goal, in bytes or nats.
        mix: the type of each group, with the expected size and divergence.
        sensitivities: the divergence that each group causes at low precision, in the order of `mix.types`.
        recipe: the mix as a recipe; `recipe_path` is the file that RECIPE takes.
        gain: the tuned file against the stock quant nearest in size, on text that the search has not read.
        built: both files.
    """

    goal: TuningGoal
    mix: TypeMix
    sensitivities: tuple[Sensitivity, ...]
    recipe: Recipe
    recipe_path: Path
    gain: TuningGain
    built: Built


@dataclass(frozen=True)
class _Search:
    """The results of the probes of one model."""

    request: BuildRequest
    reporter: WorkflowReporter
    high: BuildPlan
    probing: Probing
    sizes: Sizes
    groups: tuple[TensorGroup, ...]
    found: Sequence[Sensitivity]
    mixes: Sequence[TypeMix]
    goal: TuningGoal
    stock: dict[str, int]


def tune(request: BuildRequest, reporter: WorkflowReporter) -> Tuned:
    """Measure the sensitivity of each group of tensors, choose types, make the file, compare it with a stock quant.

    Raises:
        BadRequest: no goal or two goals are given, or no mix reaches the goal; the message names the nearest.
        NotScored: the model does not expose token log-probabilities.
        QuantyardError: see errors.py.
    """
    asked = request.tune
    assert asked is not None, "the command has it"
    _refuse_unclear_goal(asked)
    search = _search_of_mixes(request, asked, reporter)
    mix, recipe = _mix_for_goal(search)
    name = tuning_yardstick(search.stock, search.goal.size_bytes or mix.size_bytes)
    plan = workflow_plan(replace(_request_of_search(request), quants=(find_quant(name), quant_of_recipe(recipe))))
    plan = tuning_held_out_plan(
        _sized_search_plan(plan, {recipe.name: mix.size_bytes, name: search.stock[name]}), request.threads
    )
    runner, files = run_plan(_request_of_search(request), plan, reporter)
    offer_built_files(request, files, runner.projector, reporter)
    path = runner.store.folder / "recipes" / f"{recipe.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_file_atomically(path, tuned_recipe_text(recipe).encode())
    gain = _tuning_gain(recipe, runner, files)
    return Tuned(
        search.goal, mix, tuple(search.found), recipe, path, gain, built_result(runner, files)
    )


def _refuse_unclear_goal(asked: TuneRequest) -> None:
    tuning_type_ladder(asked.types)
    has_size = bool(asked.target_bytes or asked.target_quant)
    if has_size == (asked.target_kld is not None):
        both, none = "TARGET_SIZE and TARGET_KLD are both given.", "Neither TARGET_SIZE nor TARGET_KLD is given."
        hint = "Type one of them: make tune MODEL=… TARGET_SIZE=Q4_K_M, or TARGET_KLD=0.05"
        raise BadRequest(both if has_size else none, hint)


def _request_of_search(request: BuildRequest) -> BuildRequest:
    """The request without evaluation and importance matrix: the search knows sizes without a matrix only."""
    return replace(request, imatrix="none", calibration=(), measure=None)


def _search_of_mixes(request: BuildRequest, asked: TuneRequest, reporter: WorkflowReporter) -> _Search:
    plan = workflow_plan(replace(_request_of_search(request), quants=(find_quant(HIGH),)))
    if plan_unquantized_type(plan) is None:
        message = f"{plan.source.title} is quantized already, and a search needs the unquantized model."
        raise BadRequest(message, "Start from the 16-bit model: make tune MODEL=org/name")
    refuse_unscored_plan(plan.source, "tuned", "Build it with a stock quant: make build MODEL=… QUANT=Q4_K_M")
    text = tuning_text(request.calibration, plan_contaminating_files(request.artifacts), request.artifacts)
    probing = Probing(text, asked.chunks, request.threads)
    high = sensitivity_high_plan(plan)
    made = _run_search_plan(request, high, "the model at high precision", reporter).output(f"quantize {HIGH}")
    sizes = Sizes(read_gguf_model(made / "model.gguf"))
    groups, stock = tuning_tensor_groups(sizes.made, asked.parts), stock_quant_sizes(sizes)
    goal = tuning_goal(asked, stock)
    ladder = tuning_type_ladder(asked.types)
    _refuse_impossible_goal(goal, groups, sizes, ladder)
    what = f"{len(groups)} groups of tensors, each at low precision alone"
    probes = _run_search_plan(request, sensitivity_probe_plan(high, groups, sizes, probing), what, reporter)
    found, errors = group_sensitivities(groups, probes.output), read_rounding_errors(probes.output("rounding"))
    mixes = tuning_mix_front(
        [tuning_options(one, sizes, errors, ladder) for one in found], tuning_fixed_bytes(groups, sizes)
    )
    return _Search(request, reporter, high, probing, sizes, groups, found, mixes, goal, stock)


def _refuse_impossible_goal(
    goal: TuningGoal, groups: Sequence[TensorGroup], sizes: Sizes, ladder: Sequence[str]
) -> None:
    """Refuse a size that no mix can reach: the header tells it before anything is measured."""
    each = (min(sum(sizes.of_tensor(t, kind) for t in g.tensors) for kind in ladder) for g in groups)
    smallest = sum(each) + tuning_fixed_bytes(groups, sizes)
    if goal.size_bytes is not None and smallest > goal.size_bytes:
        message = f"No mix reaches {goal.text}: the smallest possible mix has {format_exact_bytes(smallest)}."
        raise BadRequest(message, f"Type: TARGET_SIZE={smallest}")


def _mix_for_goal(search: _Search) -> tuple[TypeMix, Recipe]:
    """The mix for the goal. With TARGET_KLD the mix is also measured; if it misses the goal, the next mix is larger."""
    goal = search.goal
    mix = find_tuned_mix(search.mixes, goal)
    for number in range(_ROUNDS if goal.kld is not None else 0):
        seen = _kld_of_mix(search, mix, number)
        search.reporter.tell(MixMeasured(number + 1, mix.kld, seen))
        better = find_tuned_mix(search.mixes, goal, seen / mix.kld)
        if better == mix:
            break
        mix = better
    return mix, _recipe_of_mix(search, mix, goal.name)


def _recipe_of_mix(search: _Search, mix: TypeMix, name: str) -> Recipe:
    assert search.request.tune is not None
    types = f" of {', '.join(search.request.tune.types)}" if search.request.tune.types else ""
    text = f"found for {search.high.source.model.name}: {search.goal.text}{types}"
    return tuned_recipe(name, search.groups, mix.types, text[:300])


def _kld_of_mix(search: _Search, mix: TypeMix, number: int) -> float:
    """Mean KLD of a mix on the text of the search, nats."""
    label = f"{search.goal.name}.{number}"
    recipe = _recipe_of_mix(search, mix, search.goal.name)
    floor = sensitivity_high_step(search.high)
    request = floor.request.model_copy(update={
        "recipe": label, "quant": recipe.base, "ftype": find_quant(recipe.base).ftype, "tensor_types": recipe.tensors,
        "output_type": recipe.output, "token_embedding_type": recipe.token_embedding,
    })  # fmt: skip
    made = replace(
        floor, label=f"quantize-probe {label}", request=request, size_bytes=mix.size_bytes, quant=label
    )
    measured = sensitivity_probe_step(search.high, search.probing, label, made)
    steps = tuple(s for s in search.high.steps if s is not floor)
    plan = replace(search.high, steps=(*steps, made, measured))
    runner = _run_search_plan(search.request, plan, f"mix {number + 1}", search.reporter)
    found = read_planned_divergence(runner.output(sensitivity_probe_label(label))).mean_kld
    assert found is not None, "it was compared with the unquantized model"
    return found.value


def _run_search_plan(request: BuildRequest, plan: BuildPlan, what: str, reporter: WorkflowReporter) -> PlanRunner:
    engine, _reason = workflow_engine(request)
    runner, finished, cost = prepare_workflow(request, plan, engine)
    left = [step for step in plan.steps if step.label not in finished]
    if left:
        reporter.tell(SearchRuns(what, len(left), len(plan.steps)))
    cost.check_disk(request.artifacts)
    with reporter.steps() as steps:
        runner.run(steps)
    return runner


def _sized_search_plan(plan: BuildPlan, sizes: dict[str, int]) -> BuildPlan:
    """The plan with the exact sizes."""
    steps = tuple(
        replace(step, size_bytes=sizes[step.quant]) if step.row.name == "quantize" and step.quant in sizes else step
        for step in plan.steps
    )
    targets: tuple[Target, ...] = tuple(replace(t, size_bytes=sizes[t.quant.name]) for t in plan.targets)
    return replace(plan, steps=steps, targets=targets)


def _tuning_gain(recipe: Recipe, runner: PlanRunner, files: Sequence[BuiltFile]) -> TuningGain:
    """Both files on the held-out text."""
    measured = {
        file.quant: HeldOutFile(
            file.quant, file.record.size_bytes, read_planned_divergence(runner.output(f"divergence {file.quant}"))
        )
        for file in files
    }
    tuned = measured.pop(recipe.name)
    return tuning_gain(tuned, next(iter(measured.values())))
