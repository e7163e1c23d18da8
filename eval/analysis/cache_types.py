"""One type of the KV cache beside f16: divergence by position, and speed as a paired share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import mean, stdev
from typing import Any, Final

import numpy as np

from eval.analysis.kl_divergence import Doubles, TokenValues, mean_estimate
from quantyard.metrics.intervals import estimate_interval, mapped_interval
from quantyard.protocol.cache_results import CachePosition
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.evaluation import DomainSettings

# Tokens of context: the ends of the ranges of the domain `long`, and beyond them four times as many each.
_EDGES: Final = (*DomainSettings().positions, 32_768, 131_072)


def cache_positions(n_rows: int) -> Iterator[tuple[int, int]]:
    """The ranges of context, first and last inclusive, of chunks whose rows are predicted from 1 to `n_rows` tokens."""
    first = 1
    for edge in (*_EDGES, n_rows + 1):
        last = min(edge - 1, n_rows)
        if last >= first:
            yield first, last
        first = max(first, edge)


def cache_kld_by_position(kld: Doubles, n_chunks: int) -> tuple[CachePosition, ...]:
    """The mean divergence of each range of context.

    Args:
        kld: of every row, chunk by chunk, all of one length; row i of a chunk has i + 1 tokens of context.
    """
    rows = kld.reshape(n_chunks, -1)
    parts = {span: rows[:, span[0] - 1 : span[1]].ravel() for span in cache_positions(rows.shape[1])}
    return tuple(
        CachePosition(first=first, last=last, n_tokens=len(part), mean_kld=mean_estimate(part, n_chunks))
        for (first, last), part in parts.items() if len(part) > 1
    )  # fmt: skip


def cache_divergence(values: TokenValues, n_chunks: int) -> dict[str, Any]:
    """The fields of a `CacheTypeResult` that compare the type with f16."""
    return {
        "mean_kld": mean_estimate(values.kld, n_chunks, keep_clusters=True),
        "p99_kld": float(np.percentile(values.kld, 99)),
        "top1_agreement": mean_estimate(values.same_top, n_chunks),
        "by_position": cache_kld_by_position(values.kld, n_chunks),
    }


def paired_speed_share(reference_s: Sequence[float], own_s: Sequence[float]) -> Interval | None:
    """How fast the second is beside the first (1: as fast), from seconds that were taken in turns.

    The geometric mean of the pairs' shares, with Student's interval of the mean of their logarithms: what slows the
    machine down for a while slows both of a pair. None for fewer than two pairs.
    """
    logs = [math.log(reference / own) for reference, own in zip(reference_s, own_s, strict=True)]
    if len(logs) < 2:
        return None
    found = Estimate(value=mean(logs), stderr=stdev(logs) / math.sqrt(len(logs)), df=len(logs) - 1)
    return mapped_interval(estimate_interval(found), math.exp)
