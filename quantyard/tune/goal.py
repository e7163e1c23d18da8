"""The goal of a search, the mix that meets it, and its comparison with a stock quant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_as_written, format_bytes, format_exact_bytes, format_kld
from quantyard.metrics.intervals import estimate_interval
from quantyard.plan.imatrix import plan_kld_difference
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, Step
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Interval
from quantyard.protocol.evaluation import DivergenceRequest, Runtime
from quantyard.quants.exact_sizes import nearest_stock_quant
from quantyard.requests import TuneRequest
from quantyard.tune.knapsack import TypeMix, tuned_mix_within_kld, tuned_mix_within_size


@dataclass(frozen=True)
class TuningGoal:
    """The limit for the mix: either a size in bytes, or a mean KL divergence in nats."""

    size_bytes: int | None = None
    kld: float | None = None

    @property
    def text(self) -> str:
        """In a few words."""
        return (
            format_exact_bytes(self.size_bytes)
            if self.size_bytes is not None
            else f"a mean KLD of {format_kld(self.kld or 0)}"
        )

    @property
    def name(self) -> str:
        """The name of its recipe: TUNED-105MB, TUNED-KLD0.05."""
        if self.size_bytes is not None:
            return f"TUNED-{format_bytes(self.size_bytes).replace(' ', '')}"
        return f"TUNED-KLD{format_as_written(self.kld or 0)}"


def tuning_goal(asked: TuneRequest, stock: dict[str, int]) -> TuningGoal:
    """The goal asked for; a stock quant stands for its size in this model.

    Raises:
        BadRequest: the model cannot be quantized to that quant.
    """
    if not asked.target_quant:
        return TuningGoal(asked.target_bytes, asked.target_kld)
    if asked.target_quant not in stock:
        message = f"TARGET_SIZE={asked.target_quant} cannot be used: this model cannot be quantized to it."
        raise BadRequest(message, f"Type a size, TARGET_SIZE=4GiB, or one of: {', '.join(stock)}")
    return TuningGoal(stock[asked.target_quant])


def find_tuned_mix(mixes: Sequence[TypeMix], goal: TuningGoal, kld_scale: float = 1.0) -> TypeMix:
    """The mix that meets the goal.

    Args:
        kld_scale: measured over expected divergence of earlier mixes.

    Raises:
        BadRequest: no mix meets it; the message names the nearest.
    """
    if goal.size_bytes is not None:
        found, nearest = tuned_mix_within_size(mixes, goal.size_bytes), mixes[0]
        hint = f"Type: TARGET_SIZE={nearest.size_bytes}"
    else:
        assert goal.kld is not None
        found, nearest = tuned_mix_within_kld(mixes, goal.kld / kld_scale), mixes[-1]
        hint = f"Type: TARGET_KLD={format_kld(nearest.kld * kld_scale * 1.05)}"
    if found is None:
        values = (
            f"{format_exact_bytes(nearest.size_bytes)} and an expected KLD of {format_kld(nearest.kld * kld_scale)}"
        )
        raise BadRequest(f"No mix reaches {goal.text}; the nearest has {values}.", hint)
    return found


def tuning_yardstick(stock: dict[str, int], size_bytes: int) -> str:
    """The stock quant to compare a file of this size with: the nearest that is not larger, else the smallest."""
    return nearest_stock_quant(stock, size_bytes) or min(stock, key=lambda name: stock[name])


def tuning_held_out_plan(plan: BuildPlan, threads: int) -> BuildPlan:
    """The plan of a build, with the divergence of each of its files on the held-out text."""
    steps = [_held_out_of_tuning(plan, number, threads) for number in range(len(plan.targets))]
    return replace(plan, steps=(*plan.steps, *steps))


def _held_out_of_tuning(plan: BuildPlan, number: int, threads: int) -> Step:
    """The same step as in `make eval` with default settings, so that either can reuse it."""
    target = plan.targets[number]
    request = DivergenceRequest(
        label=target.quant.name, model_file=target.file.path, baseline_file=plan.base.path,
        runtime=Runtime(threads=threads),
    )
    inputs = {"model": target.file.origin, "baseline": plan.base.origin}
    return Step(f"divergence {target.quant.name}", STAGES["divergence"], request, inputs, 0, target.quant.name)


@dataclass(frozen=True)
class HeldOutFile:
    """One file on the held-out text."""

    quant: str
    size_bytes: int
    divergence: Divergence

    @property
    def kld(self) -> Interval:
        """Mean KL divergence from the unquantized model, nats, 95 %."""
        found = self.divergence.mean_kld
        assert found is not None, "it was compared with a baseline"
        return estimate_interval(found)


@dataclass(frozen=True)
class TuningGain:
    """The tuned file against the stock one. `difference`: mean KLD, tuned less stock, nats; negative is better."""

    tuned: HeldOutFile
    stock: HeldOutFile
    difference: Interval

    @property
    def relative(self) -> Interval:
        """The difference relative to the stock file's divergence: -0.3 is 30 % less."""
        whole = self.stock.kld.value
        return Interval(**{name: value / whole for name, value in self.difference.model_dump().items()})

    @property
    def verdict(self) -> str:
        """Whether the difference is larger than chance explains."""
        if self.difference.high < 0:
            return "better"
        return "worse" if self.difference.low > 0 else "no significant difference"


def tuning_gain(tuned: HeldOutFile, stock: HeldOutFile) -> TuningGain:
    """Compare the tuned file with the stock one.

    Raises:
        QuantyardError: the two did not read the same text.
    """
    return TuningGain(tuned, stock, plan_kld_difference(tuned.divergence, stock.divergence))
