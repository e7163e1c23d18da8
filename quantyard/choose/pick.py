"""Selects a file: the best quality within the budget, or a smaller file that is not measurably worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantyard.choose.candidates import ChoiceCandidate
from quantyard.metrics.choice import DecidedBy, best_file
from quantyard.metrics.intervals import estimate_quantile


@dataclass(frozen=True)
class ChoiceBudget:
    """The limits of a choice: bytes of memory, generated tokens/s, mean KLD in nats (None: no limit)."""

    memory_bytes: int
    memory_reason: str
    min_tokens_per_s: float = 0.0
    max_kld: float | None = None


@dataclass(frozen=True)
class MissedLimit:
    """A limit that a file does not meet."""

    what: Literal["RAM", "MIN_TPS", "MAX_KLD"]
    value: float
    limit: float

    @property
    def excess(self) -> float:
        """The distance from the limit as a share of it: 0.1 for 10 %."""
        more, less = (self.limit, self.value) if self.what == "MIN_TPS" else (self.value, self.limit)
        return more / less - 1 if less else math.inf


@dataclass(frozen=True)
class Choice:
    """The chosen file; `equal` are files closer to the baseline that are equal in quality."""

    best: ChoiceCandidate
    equal: tuple[ChoiceCandidate, ...]
    runner_up: ChoiceCandidate | None
    fitting: tuple[ChoiceCandidate, ...]
    decided_by: DecidedBy = "quality"


def missed_choice_limits(found: ChoiceCandidate, budget: ChoiceBudget) -> tuple[MissedLimit, ...]:
    """The limits that this file does not meet."""
    assert found.memory_bytes is not None, "files of unknown memory are refused before"
    missed = []
    if found.memory_bytes > budget.memory_bytes:
        missed.append(MissedLimit("RAM", found.memory_bytes, budget.memory_bytes))
    if found.tokens_per_s < budget.min_tokens_per_s:
        missed.append(MissedLimit("MIN_TPS", found.tokens_per_s, budget.min_tokens_per_s))
    if budget.max_kld is not None and found.served_kld > budget.max_kld:
        missed.append(MissedLimit("MAX_KLD", found.served_kld, budget.max_kld))
    return tuple(missed)


def choose_candidate(
    candidates: Sequence[ChoiceCandidate], budget: ChoiceBudget, silent_zone: float = 0.0
) -> Choice | None:
    """The choice; None where no file meets the limits. For `silent_zone` see `best_file`."""
    fitting = tuple(c for c in candidates if not missed_choice_limits(c, budget))
    found = best_file(fitting, silent_zone)
    return Choice(found.best, found.equal, found.runner_up, fitting, found.decided_by) if found else None


def nearest_candidate(candidates: Sequence[ChoiceCandidate], budget: ChoiceBudget) -> ChoiceCandidate:
    """The file with the smallest worst excess over a limit."""
    return min(candidates, key=lambda c: max(miss.excess for miss in missed_choice_limits(c, budget)))


def candidate_half_width(found: ChoiceCandidate) -> float:
    """Half of the 95 % interval of its quality."""
    return estimate_quantile(found.quality) * found.quality.stderr

