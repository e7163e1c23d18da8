"""Combines several steps that compare files with the same baseline into one run, which decodes the baseline only once.

Each result is stored under the key of its own step, so a quant that is added later is measured alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from quantyard.plan.steps import Step
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.protocol.checked_facts import stage_facts_by_file
from quantyard.protocol.evaluation import SharedBaselineRequest, SharedMember

# The share of memory for weights; contexts and logits need the rest.
_WEIGHTS_SHARE: Final = 0.6
_MOST_NAMED: Final = 8  # labels in the name of a run


@dataclass(frozen=True)
class SharedRun:
    """Several steps (`members`) that run as one, `step`."""

    step: Step
    members: tuple[Step, ...]


def shared_baseline_run(
    first: Step, others: Sequence[Step], sizes: Mapping[str, int], memory_bytes: int
) -> SharedRun | None:
    """`first` combined with as many of the others as fit in memory; None if it must run alone.

    Args:
        others: steps that are ready to run.
        sizes: bytes of each step's model, by label; the baseline's under "".
        memory_bytes: the memory for the run.
    """
    alike = [step for step in (first, *others) if _is_baseline_shared(_shared_request_of_step(first), step.request)]
    quants = [step for step in alike if _shared_request_of_step(step).baseline_file is not None]
    chosen: list[Step] = []
    left_bytes = memory_bytes * _WEIGHTS_SHARE - sizes.get("", 0)
    for step in quants:
        left_bytes -= sizes.get(step.label, 0)
        if chosen and left_bytes < 0:
            break
        chosen.append(step)
    baselines = [step for step in alike if _is_baseline_of(step, quants)]
    members = (*baselines, *chosen)
    return SharedRun(_combined_step(baselines, chosen), members) if len(members) > 1 and first in members else None


def _is_baseline_shared(one: SharedBaselineRequest, other: object) -> bool:
    """Whether the two requests differ in nothing but their files."""
    alone = {"label": "", "model_file": "model.gguf", "baseline_file": None}
    return isinstance(other, SharedBaselineRequest) and one.model_copy(update=alone) == other.model_copy(update=alone)


def _shared_request_of_step(step: Step) -> SharedBaselineRequest:
    assert isinstance(step.request, SharedBaselineRequest)
    return step.request


def _is_baseline_of(step: Step, quants: Sequence[Step]) -> bool:
    """Whether the step measures the model that the others are compared with."""
    request = _shared_request_of_step(step)
    return request.baseline_file is None and any(
        quant.inputs.get("baseline") == step.inputs["model"]
        and _shared_request_of_step(quant).baseline_file == request.model_file
        for quant in quants
    )


def _combined_step(baselines: Sequence[Step], quants: Sequence[Step]) -> Step:
    first, *others = quants
    asked = [_shared_request_of_step(step) for step in others]
    members = tuple(SharedMember(label=one.label, model_file=one.model_file) for one in asked)
    request = _shared_request_of_step(first).model_copy(
        update={
            "others": members,
            "baseline_label": _shared_request_of_step(baselines[0]).label if baselines else "",
        }
    )
    inputs = dict(first.inputs) | {
        f"model-{_shared_request_of_step(step).label}": step.inputs["model"] for step in others
    }
    label = _label_of_combined_steps([_shared_request_of_step(step).label for step in (*baselines, *quants)])
    label += first.label.removeprefix(first.whole) if first.whole else ""
    return replace(first, label=f"{first.row.name} {label}", request=request, inputs=inputs, quant="")


def _label_of_combined_steps(labels: Sequence[str]) -> str:
    """All labels, or the first ones and the number of others, since a folder gets this name."""
    if len(labels) <= _MOST_NAMED:
        return ", ".join(labels)
    return f"{', '.join(labels[:_MOST_NAMED])} and {len(labels) - _MOST_NAMED} more"


def shared_run_result(step: Step, result: StageResult) -> tuple[FileEntry, StageResult]:
    """The file of this step in a shared run, and the result that the step would have had alone."""
    label = _shared_request_of_step(step).label
    made = next(entry for entry in result.outputs if entry.path == f"{label}/{step.row.name}.json")
    facts = stage_facts_by_file(result)
    output = made.model_copy(update={"path": f"{step.row.name}.json"})
    own = {
        "outputs": (output,), "facts": facts[label], "duration_s": result.duration_s / len(facts), "shard_nodes": (),
    }  # fmt: skip
    return made, result.model_copy(update=own)
