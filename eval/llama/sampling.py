"""Chooses the next token from a row of logits, greedily or at random with a seed of its own, and finds the text's end.

Order: temperature, top-k, top-p, min-p, then the draw, each step on what the one before left. It is the order of
transformers, hence of lm-eval's `hf`. llama.cpp's default chain has the same steps with temperature last
(common/common.h, `samplers`), so at a temperature other than 1 its top-p and min-p see other probabilities; at 1,
and for top-k alone, both orders are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from eval.llama.logprobs import unusable_logits

_NUCLEUS_START: Final = 256  # likeliest tokens that top-p looks at first; nearly always enough
_NUCLEUS_GROWTH: Final = 8

Row = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Doubles = npt.NDArray[np.float64]


def _require(holds: bool, name: str, value: float, range_: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {range_}")


@dataclass(frozen=True)
class Sampling:
    """How to choose a token.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 0.0  # 0: greedy, and nothing below matters
    top_k: int = 0  # keep the k likeliest; 0 or less: all
    top_p: float = 1.0  # keep the smallest set of likeliest tokens with this much of the mass; 1: all
    min_p: float = 0.0  # keep tokens at least this likely, relative to the likeliest; 0: all
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        _require(0 <= self.top_p <= 1, "top_p", self.top_p, "from 0 to 1")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


GREEDY: Final = Sampling()


class Sampler:
    """Chooses the tokens of one generation.

    Its random numbers depend on the seed and the prompt's number alone, never on what runs beside it.
    """

    def __init__(self, sampling: Sampling, number: int) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng((sampling.seed, number))

    def choose(self, logits: Row) -> int:
        """The next token, from logits of shape (vocabulary,).

        Raises:
            StageFailure: `nan-logits` (3): a logit is NaN or +infinity, or none is finite.
        """
        best = _best(logits)
        if self._sampling.temperature == 0:
            return best
        ids, weights = sampling_candidates(logits, self._sampling)
        # An exponential race: token i wins with its probability. Every token has a runner of its own, so noise in the
        # logits changes the winner only where two are as close; a draw along their cumulated mass would move with all.
        runners = self._random.standard_exponential(len(logits))
        return int(ids[np.argmax(weights / runners[ids])])


class GeneratedText:
    """A continuation as it grows, and its stop strings, looked for in bytes: a token may end in half a character."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._needles = [text.encode(errors="surrogatepass") for text in self._stop]
        self._reach = max(map(len, self._needles), default=0)
        self._data = bytearray()

    def add(self, piece: bytes, hidden: bytes = b"") -> bool:
        """Append a token's bytes; True once a stop string is in the text, or in a special token's `hidden` name."""
        start = max(0, len(self._data) - self._reach)
        self._data += piece
        return any(self._data.find(needle, start) >= 0 or needle in hidden for needle in self._needles)

    def cut(self) -> str:
        """The text before the first stop string, as lm-eval's `postprocess_generated_text` cuts it."""
        text = self._data.decode(errors="replace")
        for stop in self._stop:
            text = text.split(stop, 1)[0]
        return text


def sampling_candidates(logits: Row, sampling: Sampling) -> tuple[Indices, Doubles]:
    """Tokens that may be drawn, ascending, and their probabilities; both of shape (candidates,).

    Of equal logits the smaller id counts as likelier. `sampling.temperature` must not be 0.
    """
    ids = largest_logits(logits, sampling.top_k) if sampling.top_k > 0 else np.arange(len(logits))
    with np.errstate(over="ignore"):  # a tiny temperature: far below the best is probability 0
        weights = np.exp((logits[ids].astype(np.float64) - float(logits.max())) / sampling.temperature)
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= sampling.min_p * weights.max())
        ids, weights = ids[kept], weights[kept]
    return ids, weights / weights.sum()


def largest_logits(values: npt.NDArray[np.floating], count: int) -> Indices:
    """Indices of the `count` (1 or more) largest values, ascending; of equal ones the first. Sorts nothing else."""
    if count >= len(values):
        return np.arange(len(values))
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _best(logits: Row) -> int:
    """The likeliest token, the smallest id on ties. NaN and +infinity are largest to argmax, so one look finds them."""
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        message = f"The model's logits are not finite (token {best} has {logits[best]}), so no token can be chosen."
        raise unusable_logits(message)
    return best


def _nucleus(weights: Doubles, p: float) -> Indices:
    """The smallest set of the largest weights whose sum reaches p of all, at least one; ascending."""
    target = p * float(weights.sum())
    count = _NUCLEUS_START
    while count < len(weights) and weights[largest_logits(weights, count)].sum() < target:
        count *= _NUCLEUS_GROWTH
    likeliest = largest_logits(weights, count)
    order = likeliest[np.argsort(-weights[likeliest], kind="stable")]
    enough = int(np.searchsorted(np.cumsum(weights[order]), target, side="left")) + 1
    return np.sort(order[:enough])
