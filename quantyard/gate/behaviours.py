"""The intervals of behaviours that the gate judges, each an increase: positive is worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from quantyard.gate.sample_size import gate_accuracy_loss
from quantyard.metrics.intervals import Z
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import BehaviourScore


def _loss(score: BehaviourScore, z: float) -> Interval | None:
    return gate_accuracy_loss(score.comparison, z) if score.comparison else None


def _length(score: BehaviourScore, z: float) -> Interval | None:
    """In per cent of the baseline's mean length, which counts as exact."""
    delta = score.length_delta
    of_baseline = score.length.value - delta.value if delta else 0.0
    return _scaled_interval(delta, z, 100 / of_baseline) if delta and of_baseline > 0 else None


def _unfinished(score: BehaviourScore, z: float) -> Interval | None:
    return _scaled_interval(score.unfinished_delta, z, 100) if score.unfinished_delta else None


def _loops(score: BehaviourScore, z: float) -> Interval | None:
    return _scaled_interval(score.loop_delta, z, 100) if score.loop_delta else None


def _scaled_interval(found: Interval, z: float, unit: float) -> Interval:
    """The 95 % interval scaled by z / 1.96, as `gate_accuracy_loss` does, in another unit."""
    scale, value = z / Z * unit, unit * found.value
    low, high = value - scale * (found.value - found.low), value + scale * (found.high - found.value)
    return Interval(value=value, low=low, high=high)


# To add a budget of behaviours: a row here and in `judge.py`.
GATE_BEHAVIOURS: Final[Mapping[str, Callable[[BehaviourScore, float], Interval | None]]] = {
    "max_behaviour_loss": _loss, "max_length_increase": _length, "max_unfinished_increase": _unfinished,
    "max_loops_increase": _loops,
}  # fmt: skip
