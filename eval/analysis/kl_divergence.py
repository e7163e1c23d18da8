"""Perplexity, and KL divergence of models from a baseline, computed from their rows of logits.

The definitions are those of llama.cpp's tools/perplexity/perplexity.cpp. Each row of logits is reduced at once, so only
25 bytes are kept per token and model. With logits x of the baseline, y of the model, p = softmax(x) and
Z = log Σ exp, the divergence at a token is

    KLD = Σ p (log p - log q) = Σ p (x - y) / Σ p - (Z(x) - Z(y))

in nats. x - y is exact in float32 for nearby logits, so the small divergence of a good quant keeps its precision,
unlike with log-probabilities stored in 16 bits. Dividing by Σ p cancels the rounding of p.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from eval.llama.logprobs import NOT_FINITE, unusable_logits
from quantyard.protocol.divergence_results import DivergenceParts, PerplexityParts
from quantyard.protocol.estimates import Estimate

PERCENTILES: Final = (50, 90, 95, 99, 99.9, 100)
_BLOCK_FLOATS: Final = 1 << 18  # two scratch blocks of 1 MiB, which fit in the CPU cache
_LARGEST_NLL: Final = 700.0  # exp of much more overflows a float64

Rows = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_NO_TOKENS: Final = np.empty(0, np.float64)


@dataclass(frozen=True)
class ChunkSegment:
    """Positions `start` to `end` (exclusive) of a chunk, decoded in one batch; those from `first` on are scored."""

    start: int
    end: int
    first: int


def chunk_segments(
    n_ctx: int, max_tokens: int, max_rows: int, scored_from: int | None = None
) -> Iterator[ChunkSegment]:
    """Cut a chunk into batches of at most `max_tokens` tokens, of which at most `max_rows` are scored.

    Rows n_ctx / 2 (or `scored_from`) to n_ctx - 2 are scored, each against the token after it, so every prediction has
    at least half a chunk of context. The chunk's last token predicts nothing in the chunk, so it is not decoded.
    """
    start, scored_from = 0, n_ctx // 2 if scored_from is None else scored_from
    while start < n_ctx - 1:
        first = max(start, scored_from)
        end = min(start + max_tokens, first + max_rows, n_ctx - 1)
        yield ChunkSegment(start, end, min(first, end))
        start = end


# ---- one number per token ----------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenValues:
    """One model compared with the baseline at every scored token; arrays of shape (tokens,)."""

    nll: Doubles  # negative log-probability of the token that follows, nats
    kld: Doubles  # KL(baseline || model), nats
    delta_p: Doubles  # probability of the token that follows, minus the baseline's
    same_top: Bools  # whether both have the same most likely token


class DivergenceRows:
    """Accumulates `TokenValues` from rows of logits of a baseline and any number of models.

    Single-threaded, since even with the smallest models it takes 2 % of the time of decoding.
    """

    def __init__(self, n_vocab: int, n_models: int) -> None:
        self._block = max(1, _BLOCK_FLOATS // n_vocab)
        self._p = np.empty((self._block, n_vocab), np.float32)
        self._scratch = np.empty_like(self._p)
        self._baseline: list[Doubles] = []
        self._models: list[list[TokenValues]] = [[] for _ in range(n_models)]

    def add(self, baseline: Rows, models: Sequence[Rows], targets: Ints) -> None:
        """Add the rows of some tokens, shape (tokens, vocabulary) each; `targets` are the tokens that follow them.

        Raises:
            StageFailure: `nan-logits` (3): a logit is NaN or +infinity, or a divergence is infinite.
        """
        for start in range(0, len(targets), self._block):
            at = slice(start, start + self._block)
            self._add_block(baseline[at], [rows[at] for rows in models], targets[at])

    def baseline_nll(self) -> Doubles:
        """The baseline's negative log-probability of every scored token, in nats, shape (tokens,)."""
        return np.concatenate([_NO_TOKENS, *self._baseline])

    def models(self) -> list[TokenValues]:
        """The values of each model, in the order of the models."""
        return [
            TokenValues(
                nll=np.concatenate([_NO_TOKENS, *(part.nll for part in parts)]),
                kld=np.concatenate([_NO_TOKENS, *(part.kld for part in parts)]),
                delta_p=np.concatenate([_NO_TOKENS, *(part.delta_p for part in parts)]),
                same_top=np.concatenate([_NO_TOKENS.astype(np.bool_), *(part.same_top for part in parts)]),
            )
            for parts in self._models
        ]

    def _add_block(self, x: Rows, models: Sequence[Rows], targets: Ints) -> None:
        p = self._p[: len(x)]
        baseline = _token_distribution(x, targets, p)
        self._baseline.append(baseline.nll)
        for parts, y in zip(self._models, models, strict=True):
            own = _token_distribution(y, targets, self._scratch[: len(x)])
            kld = self._weighted_difference(x, y) / baseline.total - (baseline.log_sum - own.log_sum)
            delta_p = np.exp(-own.nll) - np.exp(-baseline.nll)
            parts.append(TokenValues(own.nll, _checked_kld(kld), delta_p, own.top == baseline.top))

    def _weighted_difference(self, x: Rows, y: Rows) -> Doubles:
        """Σ p (x - y) of each row."""
        p, difference = self._p[: len(x)], self._scratch[: len(x)]
        with np.errstate(invalid="ignore"):
            np.multiply(p, np.subtract(x, y, out=difference), out=difference)
        weighted = difference.sum(axis=1, dtype=np.float64)
        if not np.isfinite(weighted).all():  # logits of -infinity give 0 * inf = NaN; the limit of the product is 0
            difference[p == 0] = 0
            weighted = difference.sum(axis=1, dtype=np.float64)
        return np.asarray(weighted)


@dataclass(frozen=True)
class _Distribution:
    """Softmax statistics of rows of logits, each of shape (rows,)."""

    total: Doubles  # Σ exp(x - max x)
    log_sum: Doubles  # log Σ exp x, nats
    nll: Doubles  # of the targets, nats
    top: npt.NDArray[np.intp]  # most likely tokens; the smallest id on ties


def _token_distribution(x: Rows, targets: Ints, p: Rows) -> _Distribution:
    """Statistics of the rows; leaves exp(x - max x) in `p`.

    Sums are in float64: the error of log Σ exp in float32 is as large as the divergence of a very good quant.
    """
    each, top = np.arange(len(x)), x.argmax(axis=1)
    largest = x[each, top]
    with np.errstate(invalid="ignore"):
        np.exp(np.subtract(x, largest[:, None], out=p), out=p)
    total = p.sum(axis=1, dtype=np.float64)
    log_sum = np.log(total) + largest
    if not np.isfinite(log_sum).all():
        raise unusable_logits(NOT_FINITE)
    return _Distribution(total, log_sum, log_sum - x[each, targets], top)


def _checked_kld(kld: Doubles) -> Doubles:
    """Refuse infinite divergences, and raise those that rounding made negative (about -1e-8) to 0."""
    if not np.isfinite(kld).all():
        what = "The model gives probability 0 to a token that the baseline does not: their KL divergence is infinite."
        raise unusable_logits(what)
    return np.maximum(kld, 0.0)


# ---- one number for all tokens -----------------------------------------------------------------------


_FEWEST_CLUSTERS: Final = 8  # of a text of fewer chunks, each counts as several; t of 2 clusters is 12.7
_MOST_CLUSTERS: Final = 64  # chunks of a longer text are taken together: they also share documents


def chunk_cluster_ends(n: int, n_chunks: int) -> Ints:
    """Where the clusters end of `n` values in the order of the text, of `n_chunks` chunks of equal length.

    A cluster is a chunk, or some chunks in a row; where there are fewer than 8, a chunk is several of equal length, and
    text of fewer tokens than that has one for each token.
    """
    parts = n_chunks * math.ceil(_FEWEST_CLUSTERS / n_chunks) if n_chunks < _FEWEST_CLUSTERS else n_chunks
    return np.linspace(0, n, min(parts, _MOST_CLUSTERS, n) + 1)[1:].round().astype(np.int32)


def document_cluster_ends(lengths: Sequence[int]) -> Ints:
    """Where the clusters end of values in documents of these lengths: a document, or several of equal length of one
    where there are fewer than 8, is a cluster; empty ones count for nothing.
    """
    kept = [n for n in lengths if n]
    parts = math.ceil(_FEWEST_CLUSTERS / max(1, len(kept)))
    pieces = [np.diff(np.linspace(0, n, min(parts, n) + 1).round().astype(np.int32)) for n in kept]
    return np.cumsum(np.concatenate(pieces)).astype(np.int32) if pieces else np.empty(0, np.int32)


def cluster_means(values: Doubles | Bools, ends: Ints) -> Doubles:
    """What the clusters say each about the mean of `values`, shape (clusters,); their mean is that mean."""
    numbers, n = values.astype(np.float64), len(values)
    mean = numbers.mean()
    residuals = np.add.reduceat(numbers - mean, np.concatenate([[0], ends[:-1]]))
    return np.asarray(mean + residuals * len(ends) / n)


def clustered_mean_estimate(values: Doubles | Bools, ends: Ints, *, keep_clusters: bool = False) -> Estimate:
    """The mean of values in at least two clusters, with the standard error of these.

    Neighbouring tokens are not independent: the error of independent ones would be 1.3 to 1.6 times too small. Sources:
    Cochran, Sampling Techniques (1977), ch. 6 and 9, for the linearisation; Kish, Survey Sampling (1965), ch. 8, for
    the degrees of freedom, (Σ w)² / Σ w² - 1 for clusters of w tokens: their number less one if they are alike.
    """
    of, sizes = cluster_means(values, ends), np.diff(ends, prepend=0).astype(np.float64)
    stderr = float(of.std(ddof=1)) / math.sqrt(len(of)) if len(of) > 1 else 0.0
    kept = tuple(of.tolist()) if keep_clusters else ()
    df = max(1.0, float(sizes.sum() ** 2 / (sizes**2).sum()) - 1)
    return Estimate(value=float(values.mean()), stderr=stderr, df=df, clusters=kept)


def mean_estimate(values: Doubles | Bools, n_chunks: int, *, keep_clusters: bool = False) -> Estimate:
    """The mean of values of at least two tokens of chunks of equal length."""
    ends = chunk_cluster_ends(len(values), n_chunks)
    found = clustered_mean_estimate(values, ends, keep_clusters=keep_clusters)
    return found.model_copy(update={"df": len(ends) - 1})  # their lengths differ by a token at most


def perplexity_value(nll: Doubles) -> float:
    """The exponential of the mean negative log-probability per token, nats."""
    return math.exp(min(float(nll.mean()), _LARGEST_NLL))


def perplexity_estimate(nll: Doubles, n_chunks: int) -> Estimate:
    """The perplexity, with its standard error by the delta method."""
    mean, value = mean_estimate(nll, n_chunks), perplexity_value(nll)
    return Estimate(value=value, stderr=value * mean.stderr, df=mean.df)


def rms_estimate(values: Doubles, n_chunks: int) -> Estimate:
    """Root mean square, with its standard error by the delta method."""
    square = mean_estimate(values * values, n_chunks)
    rms = math.sqrt(square.value)
    return Estimate(value=rms, stderr=0.5 * square.stderr / rms if rms else 0.0, df=square.df)


def divergence_comparison(values: TokenValues, baseline_nll: Doubles, n_chunks: int) -> dict[str, Any]:
    """The fields of a `Divergence` that need a baseline; the error of ln(PPL / baseline PPL) is that of the mean
    difference per token. What two files may be compared by keeps its clusters.
    """
    percentiles = np.percentile(values.kld, PERCENTILES)
    return {
        "baseline_perplexity": perplexity_estimate(baseline_nll, n_chunks),
        "ln_perplexity_ratio": mean_estimate(values.nll - baseline_nll, n_chunks, keep_clusters=True),
        "mean_kld": mean_estimate(values.kld, n_chunks, keep_clusters=True),
        "kld_percentiles": {f"{p:g}": float(kld) for p, kld in zip(PERCENTILES, percentiles, strict=True)},
        "top1_agreement": mean_estimate(values.same_top, n_chunks),
        "mean_delta_p": mean_estimate(values.delta_p, n_chunks),
        "rms_delta_p": rms_estimate(values.delta_p, n_chunks),
    }


def divergence_parts(
    of_weights: Doubles, whole: Doubles, n_chunks: int, perplexity: PerplexityParts | None = None
) -> DivergenceParts:
    """A divergence split into the weights' and the backend's part, both of the same tokens of `n_chunks` chunks.

    The parts are compared token by token, so the error of the difference is that of its own clusters.
    """
    return DivergenceParts(
        n_tokens=len(whole),
        whole=mean_estimate(whole, n_chunks),
        of_file=mean_estimate(of_weights, n_chunks, keep_clusters=True),
        of_backend=mean_estimate(whole - of_weights, n_chunks),
        ln_perplexity=perplexity,
    )


def perplexity_parts(of_weights: Doubles, whole: Doubles, n_chunks: int) -> PerplexityParts:
    """The same of ln(PPL / baseline PPL), from the differences of negative log-probability at each token, nats."""
    return PerplexityParts(
        whole=mean_estimate(whole, n_chunks), of_file=mean_estimate(of_weights, n_chunks),
        of_backend=mean_estimate(whole - of_weights, n_chunks),
    )
