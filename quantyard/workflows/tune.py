"""Searching the best mix of tensor types for a size, or for a divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import Builder
from quantyard.files.atomic import write_file
from quantyard.formats.gguf import read_model
from quantyard.formatting.numbers import exact_bytes
from quantyard.plan.contamination import evaluation_files
from quantyard.plan.evaluation import refuse_unscored, unquantized_name
from quantyard.plan.imatrix import read_divergence
from quantyard.plan.steps import BuildPlan, Target
from quantyard.quants.catalog import find
from quantyard.quants.recipe import Recipe
from quantyard.quants.selection import of_recipe
from quantyard.requests import BuildRequest, TuneRequest
from quantyard.tune.exact_sizes import Sizes, stock_sizes
from quantyard.tune.goal import Gain, Goal, HeldOutFile, find_mix, gain_of, goal_of, held_out_plan, yardstick
from quantyard.tune.knapsack import Mix, front
from quantyard.tune.recipe_text import recipe_text
from quantyard.tune.sensitivity import (
    Probing,
    Sensitivity,
    fixed_bytes,
    high_plan,
    high_step,
    options_of,
    probe_divergence,
    probe_label,
    probe_plan,
    recipe_of,
    sensitivities,
)
from quantyard.tune.tensor_groups import Group, groups_of
from quantyard.tune.text import tuning_text
from quantyard.tune.type_errors import HIGH, ladder_of, read_errors
from quantyard.workflows.planning import engine_of, plan_of, prepare
from quantyard.workflows.reporter import MixMeasured, Reporter, SearchRuns
from quantyard.workflows.results import Built, built_of
from quantyard.workflows.run import offer_files, run_plan

_ROUNDS = 3  # of correcting what is expected of a mix by what one has shown


@dataclass(frozen=True)
class Tuned:
    """What a search ends with.

    Attributes:
        goal: what was asked for, in bytes or nats.
        mix: the type of each group, with the size and the divergence that are expected of it.
        sensitivities: how much each group matters, in the order of `mix.types`.
        recipe: the mix as a recipe; `recipe_path` is the file that RECIPE takes.
        gain: the tuned file against the stock quant nearest in size, on text that the search has not read.
        built: both files.
    """

    goal: Goal
    mix: Mix
    sensitivities: tuple[Sensitivity, ...]
    recipe: Recipe
    recipe_path: Path
    gain: Gain
    built: Built


@dataclass(frozen=True)
class _Search:
    """What the probes told of one model."""

    request: BuildRequest
    reporter: Reporter
    high: BuildPlan
    probing: Probing
    sizes: Sizes
    groups: tuple[Group, ...]
    found: Sequence[Sensitivity]
    mixes: Sequence[Mix]
    goal: Goal
    stock: dict[str, int]


def tune(request: BuildRequest, reporter: Reporter) -> Tuned:
    """Measure how much each group of tensors matters, choose types, make the file, compare it with a stock quant.

    Raises:
        BadRequest: no goal or two goals are given, or no mix reaches the goal; the message names the nearest.
        NotScored: the model does not expose token log-probabilities.
        QuantyardError: see errors.py.
    """
    asked = request.tune
    assert asked is not None, "the command has it"
    _refuse_unclear(asked)
    search = _searched(request, asked, reporter)
    mix, recipe = _mix(search)
    name = yardstick(search.stock, search.goal.size_bytes or mix.size_bytes)
    plan = plan_of(replace(_plain(request), quants=(find(name), of_recipe(recipe))))
    plan = held_out_plan(_sized(plan, {recipe.name: mix.size_bytes, name: search.stock[name]}), request.threads)
    builder, files = run_plan(_plain(request), plan, reporter)
    offer_files(request, files, reporter)
    path = builder.store.folder / "recipes" / f"{recipe.name}.yaml"
    path.parent.mkdir(exist_ok=True)
    write_file(path, recipe_text(recipe).encode())
    gain = _gain(recipe, builder, files)
    return Tuned(
        search.goal, mix, tuple(search.found), recipe, path, gain, built_of(builder, files)
    )


def _refuse_unclear(asked: TuneRequest) -> None:
    ladder_of(asked.types)
    has_size = bool(asked.target_bytes or asked.target_quant)
    if has_size == (asked.target_kld is not None):
        both, none = "TARGET_SIZE and TARGET_KLD are both given.", "Neither TARGET_SIZE nor TARGET_KLD is given."
        hint = "Type one of them: make tune MODEL=… TARGET_SIZE=Q4_K_M, or TARGET_KLD=0.05"
        raise BadRequest(both if has_size else none, hint)


def _plain(request: BuildRequest) -> BuildRequest:
    """Without what only some builds have: the search knows the sizes of files without a matrix."""
    return replace(request, imatrix="none", calibration=(), measure=None)


def _searched(request: BuildRequest, asked: TuneRequest, reporter: Reporter) -> _Search:
    plan = plan_of(replace(_plain(request), quants=(find(HIGH),)))
    if unquantized_name(plan) is None:
        message = f"{plan.source.title} is quantized already, and a search needs the unquantized model."
        raise BadRequest(message, "Start from the 16-bit model: make tune MODEL=org/name")
    refuse_unscored(plan.source, "tuned", "Build it with a stock quant: make build MODEL=… QUANT=Q4_K_M")
    text = tuning_text(request.calibration, evaluation_files(request.artifacts), request.artifacts)
    probing = Probing(text, asked.chunks, request.threads)
    high = high_plan(plan)
    made = _run(request, high, "the model at high precision", reporter).output(f"quantize {HIGH}")
    sizes = Sizes(read_model(made / "model.gguf"))
    groups, stock = groups_of(sizes.made, asked.parts), stock_sizes(sizes)
    goal = goal_of(asked, stock)
    ladder = ladder_of(asked.types)
    _refuse_impossible(goal, groups, sizes, ladder)
    what = f"{len(groups)} groups of tensors, each at low precision alone"
    probes = _run(request, probe_plan(high, groups, sizes, probing), what, reporter)
    found, errors = sensitivities(groups, probes.output), read_errors(probes.output("rounding"))
    mixes = front([options_of(one, sizes, errors, ladder) for one in found], fixed_bytes(groups, sizes))
    return _Search(request, reporter, high, probing, sizes, groups, found, mixes, goal, stock)


def _refuse_impossible(goal: Goal, groups: Sequence[Group], sizes: Sizes, ladder: Sequence[str]) -> None:
    """What no mix can reach is known from the header, before anything is measured."""
    each = (min(sum(sizes.of_tensor(t, kind) for t in g.tensors) for kind in ladder) for g in groups)
    smallest = sum(each) + fixed_bytes(groups, sizes)
    if goal.size_bytes is not None and smallest > goal.size_bytes:
        message = f"No mix reaches {goal.text}: the nearest, of the smallest types, has {exact_bytes(smallest)}."
        raise BadRequest(message, f"Type: TARGET_SIZE={smallest}")


def _mix(search: _Search) -> tuple[Mix, Recipe]:
    """The mix for the goal. A divergence is not only expected but measured: where it is missed, the next is larger."""
    goal = search.goal
    mix = find_mix(search.mixes, goal)
    for number in range(_ROUNDS if goal.kld is not None else 0):
        seen = _seen(search, mix, number)
        search.reporter.tell(MixMeasured(number + 1, mix.kld, seen))
        better = find_mix(search.mixes, goal, seen / mix.kld)
        if better == mix:
            break
        mix = better
    return mix, _recipe(search, mix, goal.name)


def _recipe(search: _Search, mix: Mix, name: str) -> Recipe:
    assert search.request.tune is not None
    types = f" of {', '.join(search.request.tune.types)}" if search.request.tune.types else ""
    text = f"found for {search.high.source.model.name}: {search.goal.text}{types}"
    return recipe_of(name, search.groups, mix.types, text[:300])


def _seen(search: _Search, mix: Mix, number: int) -> float:
    """Mean KLD of a mix on the text of the search, nats."""
    label = f"{search.goal.name}.{number}"
    recipe = _recipe(search, mix, search.goal.name)
    floor = high_step(search.high)
    request = floor.request.model_copy(update={
        "recipe": label, "quant": recipe.base, "ftype": find(recipe.base).ftype, "tensor_types": recipe.tensors,
        "output_type": recipe.output, "token_embedding_type": recipe.token_embedding,
    })  # fmt: skip
    made = replace(
        floor, label=f"quantize-probe {label}", request=request, size_bytes=mix.size_bytes, quant=label
    )
    measured = probe_divergence(search.high, search.probing, label, made)
    steps = tuple(s for s in search.high.steps if s is not floor)
    plan = replace(search.high, steps=(*steps, made, measured))
    builder = _run(search.request, plan, f"mix {number + 1}", search.reporter)
    found = read_divergence(builder.output(probe_label(label))).mean_kld
    assert found is not None, "it was held against the unquantized model"
    return found.value


def _run(request: BuildRequest, plan: BuildPlan, what: str, reporter: Reporter) -> Builder:
    engine, _reason = engine_of(request)
    builder, finished, cost = prepare(request, plan, engine)
    left = [step for step in plan.steps if step.label not in finished]
    if left:
        reporter.tell(SearchRuns(what, len(left), len(plan.steps)))
    cost.check_disk(request.artifacts)
    with reporter.steps() as steps:
        builder.run(steps)
    return builder


def _sized(plan: BuildPlan, sizes: dict[str, int]) -> BuildPlan:
    """The plan with the sizes that are known exactly here."""
    steps = tuple(
        replace(step, size_bytes=sizes[step.quant]) if step.row.name == "quantize" and step.quant in sizes else step
        for step in plan.steps
    )
    targets: tuple[Target, ...] = tuple(replace(t, size_bytes=sizes[t.quant.name]) for t in plan.targets)
    return replace(plan, steps=steps, targets=targets)


def _gain(recipe: Recipe, builder: Builder, files: Sequence[BuiltFile]) -> Gain:
    """Both files on the held-out text."""
    measured = {
        file.quant: HeldOutFile(
            file.quant, file.record.size_bytes, read_divergence(builder.output(f"divergence {file.quant}"))
        )
        for file in files
    }
    tuned = measured.pop(recipe.name)
    return gain_of(tuned, next(iter(measured.values())))
