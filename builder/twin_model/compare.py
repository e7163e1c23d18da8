"""Compares what Transformers and llama.cpp compute of the twin: the same logits within arithmetic, or from where not.

Both sides compute in 32 bits. What is left between them is the order of sums (1e-5 of the logits' spread was seen), and
the table of 16-bit numbers that llama.cpp takes the activation GELU from (2e-3). A fault of any kind is at least a
hundred times that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

TOLERANCE: Final = 0.02  # of the logits' spread
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TwinAgreement:
    """How far two computations of the same logits are apart."""

    max_delta: float  # the largest difference of two logits
    spread: float  # standard deviation of the original's logits
    same_top: float  # share of positions whose likeliest token is the same
    mean_kld: float  # nats, of the original from llama.cpp's
    n_positions: int
    least_cosine: float  # of two rows; of rows of one number each, of all of them as one
    first_wrong: int | None  # the first position beyond the tolerance; None: all are within it

    @property
    def relative(self) -> float:
        """The largest difference in units of the spread."""
        return self.max_delta / self.spread if self.spread else float(self.max_delta > 0)

    @property
    def is_equal(self) -> bool:
        """Whether they are the same within arithmetic."""
        return self.first_wrong is None


def compare_logits(original: Logits, ours: Logits, positions: Sequence[int]) -> TwinAgreement:
    """Compare logits of shape (positions, vocabulary). Of two vocabularies the larger one's surplus is padding.

    Raises:
        ValueError: a value is not finite, or the shapes cannot be of one prompt.
    """
    if len(original) != len(ours) or len(ours) != len(positions):
        raise ValueError(f"{len(original)} rows of the original, {len(ours)} of llama.cpp")
    width = min(original.shape[1], ours.shape[1])
    first, second = original[:, :width].astype(np.float64), ours[:, :width].astype(np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a logit is not finite")
    spread, deltas = float(first.std()), np.abs(first - second).max(axis=1)
    wrong = np.flatnonzero(deltas > TOLERANCE * spread)
    return TwinAgreement(
        max_delta=float(deltas.max()), spread=spread,
        same_top=float((first.argmax(axis=1) == second.argmax(axis=1)).mean()),
        mean_kld=_twin_mean_kld(first, second), n_positions=len(positions),
        least_cosine=_twin_least_cosine(first, second),
        first_wrong=positions[int(wrong[0])] if len(wrong) else None,
    )  # fmt: skip


def join_agreements(parts: Sequence[TwinAgreement]) -> TwinAgreement:
    """One over all prompts: the worst difference, the means of the shares."""
    count = sum(part.n_positions for part in parts)
    worst = max(parts, key=lambda part: part.relative)
    return TwinAgreement(
        max_delta=worst.max_delta, spread=worst.spread,
        same_top=sum(part.same_top * part.n_positions for part in parts) / count,
        mean_kld=sum(part.mean_kld * part.n_positions for part in parts) / count, n_positions=count,
        least_cosine=min(part.least_cosine for part in parts),
        first_wrong=next((part.first_wrong for part in parts if part.first_wrong is not None), None),
    )  # fmt: skip


def _twin_least_cosine(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    rows = (first.T, second.T) if first.shape[1] == 1 else (first, second)
    lengths = np.linalg.norm(rows[0], axis=1) * np.linalg.norm(rows[1], axis=1)
    return float((np.einsum("ij,ij->i", *rows) / np.maximum(lengths, np.finfo(np.float64).tiny)).min())


def _twin_mean_kld(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    p, q = _log_softmax_of_twin(first), _log_softmax_of_twin(second)
    return max(float((np.exp(p) * (p - q)).sum(axis=1).mean()), 0.0)


def _log_softmax_of_twin(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
