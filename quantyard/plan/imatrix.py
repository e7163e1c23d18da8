"""Importance matrices in a plan: adds the matrix, and decides for each file whether to use it.

    trial:   fetch ─► convert ─► calibrate ─► quantize, quantize-plain … ─► divergence, divergence-plain …
    after:   fetch ─► convert ─► calibrate ─► quantize ─► verify …              with the better version

IMATRIX=auto runs two plans in one store. The trial makes each file with and without the matrix and measures the KL
divergence of both on text that was not used for calibration. The second plan uses the better version of each, and
reuses the steps of the trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from quantyard.errors import QuantyardError
from quantyard.formatting.numbers import format_change, format_kld
from quantyard.metrics.intervals import interval_difference
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Origin, Step, StepOutput
from quantyard.protocol.builder import CalibrateRequest
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Interval
from quantyard.protocol.evaluation import DivergenceRequest, Runtime
from quantyard.quants.catalog import Quant, find_quant
from quantyard.store.artifact import Artifact
from quantyard.store.outputs import read_stored_output

CALIBRATE: Final = "calibrate"  # the step's label
MATRIX: Final = "imatrix.gguf"


@dataclass(frozen=True)
class Calibration:
    """Where the matrix comes from: the user's file (`matrix`), or computed from `text` or from Quantyard's text."""

    matrix: Artifact | None = None
    text: Artifact | None = None
    text_files: tuple[str, ...] = ()  # in reading order
    threads: int = 0
    n_chunks: int = 0  # 0: the whole text

    @property
    def is_made(self) -> bool:
        """Whether the stage `calibrate` computes the matrix."""
        return self.matrix is None


@dataclass(frozen=True)
class ImatrixDecision:
    """Whether one file uses the matrix. `difference` is the mean KLD with the matrix minus that without, in nats."""

    quant: str
    with_imatrix: bool
    reason: str
    difference: Interval | None = None


# ---- the steps ---------------------------------------------------------------------------------------


def plan_with_imatrix(plan: BuildPlan, calibration: Calibration, quants: Iterable[str]) -> BuildPlan:
    """The plan that makes these quants with the matrix, and computes the matrix if the user does not give one.

    Quants that a matrix cannot change stay as they are.
    """
    chosen = {name for name in quants if _does_step_use_imatrix(plan, name)}
    changed = [
        _step_given_imatrix(step, calibration) if _quant_of_step(step) in chosen else step for step in plan.steps
    ]
    at = next((number for number, step in enumerate(changed) if "imatrix" in step.inputs), None)
    if at is not None and calibration.is_made:
        changed.insert(at, calibrate_step(plan.base, calibration))
    return replace(plan, steps=tuple(changed))


def calibrate_step(base: ModelFile, calibration: Calibration) -> Step:
    """The step that computes the matrix of the unquantized model."""
    inputs: dict[str, Origin] = {"source": base.origin}
    if calibration.text is not None:
        inputs["text"] = ExternalInput(calibration.text)
    request = CalibrateRequest(
        source_file=base.path, text_files=calibration.text_files, n_chunks=calibration.n_chunks,
        threads=calibration.threads,
    )
    return Step(CALIBRATE, STAGES["calibrate"], request, inputs, 0)


def _quant_of_step(step: Step) -> str:
    """The quant or recipe that a step makes; "" for other stages."""
    return step.quant if step.row.name == "quantize" else ""


def _known_quant_of_plan(plan: BuildPlan, name: str) -> Quant:
    """The quant of this name; only the plan knows recipes."""
    return next((target.quant for target in plan.targets if target.quant.name == name), None) or find_quant(name)


def _does_step_use_imatrix(plan: BuildPlan, name: str) -> bool:
    return _known_quant_of_plan(plan, name).uses_imatrix


def _does_step_need_imatrix(plan: BuildPlan, name: str) -> bool:
    return _known_quant_of_plan(plan, name).needs_imatrix


def _step_given_imatrix(step: Step, calibration: Calibration) -> Step:
    matrix, name = StepOutput(CALIBRATE), MATRIX
    origin: Origin = matrix
    if calibration.matrix is not None:
        origin, name = ExternalInput(calibration.matrix), calibration.matrix.files[0].path
    request = step.request.model_copy(update={"imatrix_file": name})
    return replace(step, request=request, inputs={**step.inputs, "imatrix": origin})


# ---- auto: with and without --------------------------------------------------------------------------


def plan_imatrix_trial_quants(plan: BuildPlan) -> tuple[str, ...]:
    """The quants that can be made with and without a matrix: not those that need one or do not use one."""
    made = (_quant_of_step(step) for step in plan.steps)
    return tuple(
        name for name in made if name and _does_step_use_imatrix(plan, name) and not _does_step_need_imatrix(plan, name)
    )


def plan_imatrix_trial(plan: BuildPlan, calibration: Calibration) -> BuildPlan | None:
    """The plan that makes and measures both versions of each file; None if there is nothing to decide.

    It publishes no files; the plan of `plan_as_decided` does. Divergences come last, so that they can share one run.
    """
    names = plan_imatrix_trial_quants(plan)
    if not names:
        return None
    given = plan_with_imatrix(plan, calibration, names)
    plain = {_quant_of_step(step): step for step in plan.steps if _quant_of_step(step) in names}
    before = [s for s in given.steps if s.row.name in ("datasets", "fetch", "twin", "convert", CALIBRATE)]
    both = [s for s in given.steps if _quant_of_step(s) in names]
    both += [replace(step, label=plain_step_label("quantize", name)) for name, step in plain.items()]
    measured = [_imatrix_trial_step(plan, calibration, step) for step in both]
    return replace(plan, steps=(*before, *both, *measured), targets=(), measuring=None, contracts=())


def plan_trial_and_rest(tried: BuildPlan, given: BuildPlan) -> BuildPlan:
    """The steps of a trial and of the plan after it as one plan, to estimate the disk space of both.

    Args:
        given: the plan that makes all files with the matrix.
    """
    known = {step.label for step in tried.steps}
    return replace(given, steps=(*tried.steps, *(step for step in given.steps if step.label not in known)))


def plain_step_label(stage: str, quant: str) -> str:
    """The label of a step for the version without a matrix; the other version has the usual label."""
    return f"{stage}-plain {quant}"


def _imatrix_trial_step(plan: BuildPlan, calibration: Calibration, made: Step) -> Step:
    """The step that measures a file of the trial: the plan's own step if it has one, so that it is reused."""
    quant, is_plain = _quant_of_step(made), "imatrix" not in made.inputs
    label = f"divergence {quant}"
    step = next((s for s in plan.steps if s.label == label and s.inputs.get("baseline") == plan.base.origin), None)
    if step is None:
        request = DivergenceRequest(
            label=quant, baseline_file=plan.base.path, runtime=Runtime(threads=calibration.threads)
        )
        step = Step(label, STAGES["divergence"], request, {"baseline": plan.base.origin}, 0, quant)
    step = replace(step, inputs={**step.inputs, "model": StepOutput(made.label)})
    if not is_plain:
        return step
    other = step.request.model_copy(update={"label": f"{quant}-plain"})
    return replace(step, label=plain_step_label("divergence", quant), request=other)


def plan_imatrix_decision(quant: str, given: Divergence, plain: Divergence) -> ImatrixDecision:
    """Decide for the matrix only if the mean KLD with it is significantly lower (95 %)."""
    found = plan_kld_difference(given, plain)
    assert given.mean_kld is not None, "it was compared with a baseline"
    assert plain.mean_kld is not None, "it was compared with a baseline"
    values = f"mean KLD {format_kld(given.mean_kld.value)} with the matrix, {format_kld(plain.mean_kld.value)} without"
    if found.high < 0:
        return ImatrixDecision(
            quant, True, f"better with: {values} ({format_change(found.value / plain.mean_kld.value)})", found
        )
    verdict = "worse with" if found.low > 0 else "no significant difference"
    return ImatrixDecision(quant, False, f"{verdict}: {values}", found)


def plan_imatrix_decisions(plan: BuildPlan, output: Callable[[str], Path]) -> Mapping[str, ImatrixDecision]:
    """The decision for each quant that can use a matrix, once the trial has run.

    Args:
        plan: the plan without a matrix.
        output: the folder of a finished step of the trial, by label; see `PlanRunner.output`. It raises KeyError for a
            step that did not finish; that file is made without a matrix.
    """
    found = {}
    for name in filter(None, map(_quant_of_step, plan.steps)):
        if _does_step_need_imatrix(plan, name):
            found[name] = ImatrixDecision(name, True, "cannot be made without a matrix")
        elif _does_step_use_imatrix(plan, name):
            with suppress(KeyError):
                given, plain = output(f"divergence {name}"), output(plain_step_label("divergence", name))
                found[name] = plan_imatrix_decision(
                    name, read_planned_divergence(given), read_planned_divergence(plain)
                )
    return found


def plan_as_decided(plan: BuildPlan, calibration: Calibration, found: Mapping[str, ImatrixDecision]) -> BuildPlan:
    """The plan that makes each file as decided."""
    return plan_with_imatrix(plan, calibration, [name for name, decision in found.items() if decision.with_imatrix])


def read_planned_divergence(folder: Path) -> Divergence:
    """The record that the stage left in this folder.

    Raises:
        QuantyardError: the file is not such a record.
    """
    return read_stored_output(folder, "divergence.json", Divergence, "is not a divergence")


def plan_kld_difference(one: Divergence, other: Divergence) -> Interval:
    """Mean KL divergence of one file minus that of another, nats.

    Raises:
        QuantyardError: they were not measured on the same text.
    """
    assert one.mean_kld is not None, "it was compared with a baseline"
    assert other.mean_kld is not None, "it was compared with a baseline"
    if (one.text, one.n_tokens) != (other.text, other.n_tokens):
        message = f"{one.label} and {other.label} were not measured on the same text."
        raise QuantyardError(message, "Please report this.")
    return interval_difference(one.mean_kld, other.mean_kld)
