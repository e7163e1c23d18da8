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
from quantyard.protocol.measurements import Estimate

PERCENTILES: Final = (50, 90, 95, 99, 99.9, 100)
_BLOCK_FLOATS: Final = 1 << 18  # two scratch blocks of 1 MiB, which fit in the CPU cache
_LARGEST_NLL: Final = 700.0  # exp of much more overflows a float64

Rows = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


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
        return np.concatenate(self._baseline)

    def models(self) -> list[TokenValues]:
        """The values of each model, in the order of the models."""
        return [
            TokenValues(
                nll=np.concatenate([part.nll for part in parts]), kld=np.concatenate([part.kld for part in parts]),
                delta_p=np.concatenate([part.delta_p for part in parts]),
                same_top=np.concatenate([part.same_top for part in parts]),
            )
            for parts in self._models
        ]

    def _add_block(self, x: Rows, models: Sequence[Rows], targets: Ints) -> None:
        p = self._p[: len(x)]
        baseline = _distribution(x, targets, p)
        self._baseline.append(baseline.nll)
        for parts, y in zip(self._models, models, strict=True):
            own = _distribution(y, targets, self._scratch[: len(x)])
            kld = self._weighted_difference(x, y) / baseline.total - (baseline.log_sum - own.log_sum)
            delta_p = np.exp(-own.nll) - np.exp(-baseline.nll)
            parts.append(TokenValues(own.nll, _checked(kld), delta_p, own.top == baseline.top))

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


def _distribution(x: Rows, targets: Ints, p: Rows) -> _Distribution:
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


def _checked(kld: Doubles) -> Doubles:
    """Refuse infinite divergences, and raise those that rounding made negative (about -1e-8) to 0."""
    if not np.isfinite(kld).all():
        what = "The model gives probability 0 to a token that the baseline does not: their KL divergence is infinite."
        raise unusable_logits(what)
    return np.maximum(kld, 0.0)


# ---- one number for all tokens -----------------------------------------------------------------------


def mean_estimate(values: Doubles | Bools) -> Estimate:
    """The mean of at least two values with its standard error; for booleans, their share with its binomial error."""
    numbers = values.astype(np.float64)
    return Estimate(value=float(numbers.mean()), stderr=float(numbers.std(ddof=1)) / math.sqrt(len(numbers)))


def perplexity_estimate(nll: Doubles) -> Estimate:
    """The exponential of the mean nll, with its standard error by the delta method."""
    mean = mean_estimate(nll)
    value = math.exp(min(mean.value, _LARGEST_NLL))
    return Estimate(value=value, stderr=value * mean.stderr)


def rms_estimate(values: Doubles) -> Estimate:
    """Root mean square, with its standard error by the delta method."""
    square = mean_estimate(values * values)
    rms = math.sqrt(square.value)
    return Estimate(value=rms, stderr=0.5 * square.stderr / rms if rms else 0.0)


def divergence_comparison(values: TokenValues, baseline_nll: Doubles) -> dict[str, Any]:
    """The fields of a `Divergence` that need a baseline.

    The standard error of ln(PPL / baseline PPL) is that of the mean difference per token, which equals
    var(a) + var(b) - 2 cov(a, b).
    """
    percentiles = np.percentile(values.kld, PERCENTILES)
    return {
        "baseline_perplexity": perplexity_estimate(baseline_nll),
        "ln_perplexity_ratio": mean_estimate(values.nll - baseline_nll),
        "mean_kld": mean_estimate(values.kld),
        "kld_percentiles": {f"{p:g}": float(kld) for p, kld in zip(PERCENTILES, percentiles, strict=True)},
        "top1_agreement": mean_estimate(values.same_top),
        "mean_delta_p": mean_estimate(values.delta_p),
        "rms_delta_p": rms_estimate(values.delta_p),
    }
