"""The numbers of a domain from those of its scored tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from eval.analysis.kl_divergence import (
    Doubles,
    TokenValues,
    clustered_mean_estimate,
    document_cluster_ends,
    perplexity_value,
)
from quantyard.protocol.divergence_results import DomainPart
from quantyard.protocol.estimates import Estimate

LEAST_TOKENS: Final = 16  # of a domain or a part of one; fewer say nothing
Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class DomainTokens:
    """Where the scored tokens of a domain stand; arrays of shape (tokens,), in the order of reading."""

    document: npt.NDArray[np.int32]
    position: npt.NDArray[np.int32]  # tokens of the passage before it
    kind: Names  # what it is: part of a text, of an answer, of a tool call


def domain_numbers(values: TokenValues | None, nll: Doubles, tokens: DomainTokens) -> dict[str, Any]:
    """The fields of a `DomainDivergence` that are computed from tokens; `values` None: this file is the baseline."""
    ends = _cluster_ends(tokens.document)
    mean = clustered_mean_estimate(nll, ends)
    perplexity = perplexity_value(nll)
    numbers: dict[str, Any] = {
        "n_tokens": len(nll),
        "perplexity": Estimate(value=perplexity, stderr=perplexity * mean.stderr, df=mean.df),
    }
    return numbers if values is None else numbers | _compared_numbers(values, ends, keep_clusters=True)


def domain_parts(values: TokenValues, tokens: DomainTokens, names: Names) -> tuple[DomainPart, ...]:
    """The numbers of the tokens of each name, in the order in which the names first occur."""
    order = dict.fromkeys(names.tolist())
    parts = ((name, np.flatnonzero(names == name)) for name in order)
    return tuple(_domain_part(name, values, tokens, at) for name, at in parts if len(at) >= LEAST_TOKENS)


def _domain_part(name: str, values: TokenValues, tokens: DomainTokens, at: npt.NDArray[np.intp]) -> DomainPart:
    own = TokenValues(values.nll[at], values.kld[at], values.delta_p[at], values.same_top[at])
    numbers = _compared_numbers(own, _cluster_ends(tokens.document[at]), keep_clusters=False)
    return DomainPart(name=name, n_tokens=len(at), **numbers)


def _compared_numbers(values: TokenValues, ends: npt.NDArray[np.int32], *, keep_clusters: bool) -> dict[str, Any]:
    return {
        "mean_kld": clustered_mean_estimate(values.kld, ends, keep_clusters=keep_clusters),
        "kld_p99": float(np.percentile(values.kld, 99)),
        "top1_agreement": clustered_mean_estimate(values.same_top, ends),
    }


def _cluster_ends(document: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Each document is a cluster, or several; see `document_cluster_ends`."""
    _, lengths = np.unique(document, return_counts=True)
    return document_cluster_ends(lengths.tolist())


def position_names(position: npt.NDArray[np.int32], ends: Sequence[int]) -> Names:
    """The bucket of each position: "0-512" for those below 512, "512-2048" for the next ones."""
    names = [f"{low}-{high}" for low, high in pairwise((0, *ends))]
    which = np.searchsorted(np.array(ends), position, side="right").clip(max=len(names) - 1)
    return np.array([names[at] for at in which])
