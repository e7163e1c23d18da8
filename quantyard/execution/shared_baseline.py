"""Several steps of a plan as one run: the divergence of many files, for which the baseline is decoded once.

What is kept stays one file's, under its own key: a further quant later is measured alone, and the others not again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import JsonValue

from quantyard.plan.steps import Step
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.protocol.evaluation import DivergenceMember, DivergenceRequest

# Of memory that is free, how much the weights may take: contexts and logits need some too.
_WEIGHTS_SHARE: Final = 0.6
_NAMED: Final = 8  # labels in the name of a run


@dataclass(frozen=True)
class SharedRun:
    """Steps that run as one; `step` is what runs."""

    step: Step
    members: tuple[Step, ...]


def can_share(step: Step) -> bool:
    """Whether steps like this one can run as one."""
    return isinstance(step.request, DivergenceRequest)


def shared_run(first: Step, others: Sequence[Step], sizes: Mapping[str, int], memory_bytes: int) -> SharedRun | None:
    """`first` with as many of the others as can be read beside it; None if it must run alone.

    Args:
        others: steps that are ready to run.
        sizes: of each step's model, bytes, by label; the baseline's under "".
        memory_bytes: what the run may take.
    """
    alike = [step for step in (first, *others) if _alike(_request(first), step.request)]
    quants = [step for step in alike if _request(step).baseline_file is not None]
    chosen: list[Step] = []
    left_bytes = memory_bytes * _WEIGHTS_SHARE - sizes.get("", 0)
    for step in quants:
        left_bytes -= sizes.get(step.label, 0)
        if chosen and left_bytes < 0:
            break
        chosen.append(step)
    baselines = [step for step in alike if _is_baseline_of(step, quants)]
    members = (*baselines, *chosen)
    return SharedRun(_joined(baselines, chosen), members) if len(members) > 1 and first in members else None


def _alike(one: DivergenceRequest, other: object) -> bool:
    return isinstance(other, DivergenceRequest) and (one.settings, one.runtime) == (other.settings, other.runtime)


def _request(step: Step) -> DivergenceRequest:
    assert isinstance(step.request, DivergenceRequest)
    return step.request


def _is_baseline_of(step: Step, quants: Sequence[Step]) -> bool:
    """Whether its model is what the others are compared with."""
    request = _request(step)
    return request.baseline_file is None and any(
        quant.inputs.get("baseline") == step.inputs["model"] and _request(quant).baseline_file == request.model_file
        for quant in quants
    )


def _joined(baselines: Sequence[Step], quants: Sequence[Step]) -> Step:
    first, *others = quants
    members = tuple(DivergenceMember(label=_request(s).label, model_file=_request(s).model_file) for s in others)
    request = _request(first).model_copy(
        update={"others": members, "baseline_label": _request(baselines[0]).label if baselines else ""}
    )
    inputs = dict(first.inputs) | {f"model-{_request(step).label}": step.inputs["model"] for step in others}
    label = _named([_request(step).label for step in (*baselines, *quants)])
    return replace(first, label=f"divergence {label}", request=request, inputs=inputs, quant="")


def _named(labels: Sequence[str]) -> str:
    """All of them, or the first and how many more: the name of a folder is made of it."""
    if len(labels) <= _NAMED:
        return ", ".join(labels)
    return f"{', '.join(labels[:_NAMED])} and {len(labels) - _NAMED} more"


def member_result(step: Step, result: StageResult) -> tuple[FileEntry, StageResult]:
    """Of a joined run, the file that is this step's, and the result as if it had run alone."""
    label = _request(step).label
    made = next(entry for entry in result.outputs if entry.path == f"{label}/divergence.json")
    facts = result.facts.get(label)
    alone: dict[str, JsonValue] = dict(facts) if isinstance(facts, dict) else {}
    output = made.model_copy(update={"path": "divergence.json"})
    n_members = len(result.facts) or 1
    own = {"outputs": (output,), "facts": alone, "duration_s": result.duration_s / n_members}
    return made, result.model_copy(update=own)
