"""The steps that measure how much each group matters, and their results.

    [what is built already] ─► rounding ─► quantize-probe <group>… ─► divergence-probe <group>…

Each probe is the model at HIGH with one group at LOW. The divergences come last, so that they share one run that
decodes the unquantized model once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from quantyard.formats.tensor_patterns import EMBEDDING, OUTPUT
from quantyard.plan.imatrix import read_planned_divergence
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, Step, StepOutput
from quantyard.protocol.builder import RoundingRequest
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.evaluation import DivergenceRequest, DivergenceSettings, Runtime
from quantyard.quants.exact_sizes import Sizes
from quantyard.quants.recipe import Recipe
from quantyard.store.artifact import Artifact
from quantyard.tune.knapsack import TypeOption
from quantyard.tune.tensor_groups import TensorGroup
from quantyard.tune.text import NAME
from quantyard.tune.type_errors import HIGH, LADDER, LOW, Errors, distinct_tuning_types, tuning_type_error

FLOOR: Final = HIGH  # the label of the file in which no group is low
_LEAST_SHARE: Final = 0.1  # of a standard error: the floor for a sensitivity too small to measure
_LEAST_ERROR: Final = 1e-6  # if LOW hardly rounds the weights, all types count as equal


@dataclass(frozen=True)
class Probing:
    """How the probes are measured: the text, how many chunks of 512 tokens of it (0: all), and the threads."""

    text: Artifact
    n_chunks: int
    threads: int = 0


@dataclass(frozen=True)
class Sensitivity:
    """How much a group matters. `kld`: mean divergence that LOW in it alone adds to HIGH everywhere, nats."""

    group: TensorGroup
    kld: float
    stderr: float


def sensitivity_high_plan(plan: BuildPlan) -> BuildPlan:
    """The steps that make HIGH: fetch, twin, convert and quantize, without a final file."""
    kept = tuple(step for step in plan.steps if step.row.name in ("fetch", "twin", "convert", "quantize"))
    return replace(plan, steps=kept, targets=(), measuring=None, contracts=())


def sensitivity_probe_plan(high: BuildPlan, groups: Sequence[TensorGroup], sizes: Sizes, probing: Probing) -> BuildPlan:
    """The plan that makes and measures a probe of each group, beside HIGH itself."""
    floor = sensitivity_high_step(high)
    made = [_sensitivity_probe(floor, group, sizes) for group in groups]
    measured = [sensitivity_probe_step(high, probing, FLOOR, floor)]
    measured += [sensitivity_probe_step(high, probing, g.name, step) for g, step in zip(groups, made, strict=True)]
    return replace(high, steps=(*high.steps, tuning_rounding_step(high), *made, *measured))


def tuning_rounding_step(plan: BuildPlan) -> Step:
    """The step that measures how far each type rounds the model's weights."""
    request = RoundingRequest(source_file=plan.base.path, types=LADDER)
    return Step("rounding", STAGES["rounding"], request, {"source": plan.base.origin}, 0)


def sensitivity_high_step(plan: BuildPlan) -> Step:
    """The step that makes HIGH."""
    return next(step for step in plan.steps if step.label == f"quantize {HIGH}")


def _sensitivity_probe(floor: Step, group: TensorGroup, sizes: Sizes) -> Step:
    field = {EMBEDDING: "token_embedding_type", OUTPUT: "output_type"}.get(group.kind)
    given = {field: LOW} if field else {"tensor_types": {group.pattern: LOW}}
    request = floor.request.model_copy(update={"recipe": f"probe {group.name}", **given})
    size_bytes = sizes.of_file({tensor.name: LOW for tensor in group.tensors})
    label = f"quantize-probe {group.name}"
    return replace(floor, label=label, request=request, size_bytes=size_bytes, quant=group.name)


def sensitivity_probe_step(plan: BuildPlan, probing: Probing, label: str, made: Step) -> Step:
    """The step that measures one file on the text of the search."""
    request = DivergenceRequest(
        label=label, baseline_file=plan.base.path, runtime=Runtime(threads=probing.threads),
        settings=DivergenceSettings(text=NAME, n_chunks=probing.n_chunks, weights_chunks=0),
    )
    inputs = {"model": StepOutput(made.label), "baseline": plan.base.origin, "suite": ExternalInput(probing.text)}
    return Step(sensitivity_probe_label(label), STAGES["divergence"], request, inputs, 0, label)


def sensitivity_probe_label(name: str) -> str:
    """The label of the step that measured a file on the text of the search."""
    return f"divergence-probe {name}"


def group_sensitivities(groups: Sequence[TensorGroup], output: Callable[[str], Path]) -> list[Sensitivity]:
    """What the probes found; `output` gives the folder of a finished step by its label."""
    found = {
        name: read_planned_divergence(output(sensitivity_probe_label(name)))
        for name in (FLOOR, *(g.name for g in groups))
    }
    return [_sensitivity_of_group(group, found[group.name], found[FLOOR]) for group in groups]


def _sensitivity_of_group(group: TensorGroup, probe: Divergence, floor: Divergence) -> Sensitivity:
    assert probe.mean_kld is not None, "it was compared with the unquantized model"
    assert floor.mean_kld is not None, "likewise"
    added = probe.mean_kld.value - floor.mean_kld.value
    least = _LEAST_SHARE * probe.mean_kld.stderr
    return Sensitivity(group, max(added, least), probe.mean_kld.stderr)


def tuning_options(
    found: Sensitivity, sizes: Sizes, errors: Errors, ladder: Sequence[str] = LADDER
) -> list[TypeOption]:
    """The bytes and the divergence of each type for this group, the latter in proportion to the squared error.

    The measured difference has HIGH's own error on both sides, so the divergence at LOW is larger by that.
    """
    tensors = found.group.tensors
    low, high = tuning_type_error(LOW, tensors, errors), tuning_type_error(HIGH, tensors, errors)
    per_error = found.kld / max(low - high, _LEAST_ERROR)
    return [
        TypeOption(
            kind, sum(sizes.of_tensor(t, kind) for t in tensors), per_error * tuning_type_error(kind, tensors, errors)
        )
        for kind in distinct_tuning_types(tensors, ladder)
    ]


def tuning_fixed_bytes(groups: Sequence[TensorGroup], sizes: Sizes) -> int:
    """Bytes outside all groups: the header, and the tensors that keep their types."""
    chosen = {tensor.name: HIGH for group in groups for tensor in group.tensors}
    grouped = sum(sizes.of_tensor(tensor, HIGH) for group in groups for tensor in group.tensors)
    return sizes.of_file(chosen) - grouped


def tuned_recipe(name: str, groups: Sequence[TensorGroup], types: Sequence[str], description: str) -> Recipe:
    """The mix as a recipe. Its base is a plain quant of the type that most weights have; every group is named."""
    chosen = dict(zip(groups, types, strict=True))
    single = {group.kind: kind for group, kind in chosen.items() if group.layers is None}
    layered = {group: kind for group, kind in chosen.items() if group.layers is not None}
    return Recipe(
        name=name, base=_base_type_of_mix(chosen), description=description, tensors=_patterns_of_mix(layered),
        output=single.get(OUTPUT), token_embedding=single.get(EMBEDDING),
    )


def _base_type_of_mix(chosen: Mapping[TensorGroup, str]) -> str:
    weights: dict[str, int] = {}
    for group, kind in chosen.items():
        weights[kind] = weights.get(kind, 0) + group.n_params
    most = max(weights, key=lambda kind: weights[kind])
    return {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}.get(most, most)


def _patterns_of_mix(chosen: Mapping[TensorGroup, str]) -> dict[str, str]:
    """One line for a kind that has one type everywhere."""
    kinds: dict[str, set[str]] = {}
    for group, kind in chosen.items():
        kinds.setdefault(group.kind, set()).add(kind)
    return {group.kind if len(kinds[group.kind]) == 1 else group.pattern: kind for group, kind in chosen.items()}
