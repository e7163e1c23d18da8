"""Compares two rankings of the same documents, and one with what answers the query."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quantyard.protocol.estimates import Estimate

Scores = npt.NDArray[np.float64]


def kendall_tau(one: Scores, other: Scores) -> float:
    """Kendall's tau-b (Biometrika 33, 1945, 239) of two scores of the same documents; 0 where one has no order."""
    upper = np.triu_indices(len(one), 1)
    first, second = (np.sign(x[:, None] - x[None, :])[upper] for x in (one, other))
    whole = math.sqrt(float(np.count_nonzero(first)) * float(np.count_nonzero(second)))
    return float((first * second).sum()) / whole if whole else 0.0


def document_ranking(scores: Scores) -> list[int]:
    """The documents from the best to the worst; of equals the first one first."""
    return [int(at) for at in np.argsort(-scores, kind="stable")]


def ranking_overlap(one: Scores, other: Scores, best: int) -> float:
    """The share of the first documents that both rankings have."""
    return len({*document_ranking(one)[:best]} & {*document_ranking(other)[:best]}) / min(best, len(one))


def ndcg(scores: Scores, relevant: Sequence[int], best: int) -> float:
    """Normalized discounted cumulative gain of the first documents (Järvelin and Kekäläinen, TOIS 20, 2002, 422)."""
    gains = (1 / math.log2(place + 2) for place, at in enumerate(document_ranking(scores)[:best]) if at in relevant)
    return sum(gains) / sum(1 / math.log2(place + 2) for place in range(min(best, len(relevant))))


def mean_of_queries(values: Sequence[float]) -> Estimate:
    """The mean over queries or texts, which are independent, and its standard error; tokens: kl_divergence.py."""
    array = np.asarray(values, np.float64)
    spread = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Estimate(value=float(array.mean()), stderr=spread / math.sqrt(len(array)))
