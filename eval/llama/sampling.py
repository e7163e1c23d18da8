"""Chooses the next token from a row of logits, greedily or by seeded sampling, and cuts texts at stop strings.

The order is temperature, top-k, top-p, min-p, then the draw, as in transformers and so in lm-eval's `hf`. llama.cpp's
default chain has the same steps with temperature last (common/common.h, `samplers`), so at a temperature other than 1
its top-p and min-p see other probabilities. At 1, and with top-k alone, both orders give the same result.

The random number of a token is a hash of the seed, the prompt, the step and the token: what runs beside a generation
changes none, and the same prompt and seed draw the same numbers for every file that is compared.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from eval.llama.logprobs import unusable_logits

_NUCLEUS_START: Final = 256  # how many of the most likely tokens top-p sorts first; nearly always enough
_NUCLEUS_GROWTH: Final = 8

Row = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Doubles = npt.NDArray[np.float64]


def _require_sampling_range(holds: bool, name: str, value: float, range_: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {range_}")


@dataclass(frozen=True)
class Sampling:
    """How to choose a token.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 0.0  # 0: greedy; the fields below are then ignored
    top_k: int = 0  # keep the k most likely tokens; 0 or less: all
    top_p: float = 1.0  # keep the smallest set of most likely tokens with this probability mass; 1: all
    min_p: float = 0.0  # keep tokens with at least this share of the highest probability; 0: all
    repeat_penalty: float = 1.0  # of tokens that were read or written before, as transformers applies it; 1: none
    seed: int = 0

    def __post_init__(self) -> None:
        _require_sampling_range(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        _require_sampling_range(0 <= self.top_p <= 1, "top_p", self.top_p, "from 0 to 1")
        _require_sampling_range(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        penalty = self.repeat_penalty
        _require_sampling_range(0 < penalty < math.inf, "repeat_penalty", penalty, "more than 0")
        _require_sampling_range(self.seed >= 0, "seed", self.seed, "0 or more")


GREEDY: Final = Sampling()


class Sampler:
    """Chooses the tokens of one generation.

    Its random numbers depend only on the seed and `stream`, which names the prompt, never on what runs beside it.
    """

    def __init__(self, sampling: Sampling, stream: int, prompt: Sequence[int] = ()) -> None:
        self._sampling, self._stream, self._n_chosen = sampling, stream, 0
        self._seen: set[int] | None = set(prompt) if sampling.repeat_penalty != 1 else None

    def choose(self, logits: Row) -> int:
        """The next token, from logits of shape (vocabulary,).

        Raises:
            StageFailure: `nan-logits` (3): a logit is NaN or +infinity, or none is finite.
        """
        best = _most_likely_token(logits)
        if self._sampling.temperature == 0:
            return best
        ids, weights = sampling_candidates(self._penalized(logits), self._sampling)
        # The exponential race (Gumbel-max trick): token i wins with its probability. Each token has its own random
        # number, so noise in the logits changes the winner only if the first two are that close. With a draw from the
        # cumulative distribution, noise in any token could change it.
        token = int(ids[np.argmax(weights / _race_times(self._step_key(), ids))])
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalized(self, logits: Row) -> Row:
        if self._seen is None:
            return logits
        changed, ids = logits.copy(), np.fromiter(self._seen, np.intp, len(self._seen))
        penalty, values = np.float32(self._sampling.repeat_penalty), logits[ids]
        changed[ids] = np.where(values < 0, values * penalty, values / penalty)
        return changed

    def _step_key(self) -> int:
        said = f"{self._sampling.seed} {self._stream} {self._n_chosen}"
        self._n_chosen += 1
        return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest())


def _race_times(key: int, ids: Indices) -> Doubles:
    """An exponentially distributed number for each token: SplitMix64 (Steele et al., 2014) of the key and the token."""
    bits = np.uint64(key) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return np.asarray(-np.log(uniform), np.float64)


class GeneratedText:
    """A growing continuation and its stop strings. Both are bytes, since a token may end within a character.

    `is_whole`: it continues no other text, so the space that the tokenizer puts before its first word is left out.
    """

    def __init__(self, stop: Sequence[str], *, is_whole: bool = False) -> None:
        self._is_whole = is_whole
        self._stop = [text for text in stop if text]
        self._needles = [text.encode(errors="surrogatepass") for text in self._stop]
        self._reach = max(map(len, self._needles), default=0)
        self._data = bytearray()

    def add(self, piece: bytes, hidden: bytes = b"") -> bool:
        """Append a token's bytes; True once a stop string is in the text, or in a special token's `hidden` name."""
        start = max(0, len(self._data) - self._reach)
        self._data += piece.removeprefix(b" ") if self._is_whole and not self._data else piece
        return any(self._data.find(needle, start) >= 0 or needle in hidden for needle in self._needles)

    def cut(self) -> str:
        """The text before the first stop string, as lm-eval's `postprocess_generated_text` cuts it."""
        text = self._data.decode(errors="replace")
        for stop in self._stop:
            text = text.split(stop, 1)[0]
        return text


def sampling_candidates(logits: Row, sampling: Sampling) -> tuple[Indices, Doubles]:
    """Token ids that may be drawn, ascending, and their probabilities; both of shape (candidates,).

    On ties the smaller id counts as more likely. `sampling.temperature` must not be 0.
    """
    ids = largest_logits(logits, sampling.top_k) if sampling.top_k > 0 else np.arange(len(logits))
    with np.errstate(over="ignore"):  # with a tiny temperature the quotient may be -infinity: probability 0
        weights = np.exp((logits[ids].astype(np.float64) - float(logits.max())) / sampling.temperature)
    if sampling.top_p < 1:
        kept = _nucleus_tokens(weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= sampling.min_p * weights.max())
        ids, weights = ids[kept], weights[kept]
    return ids, weights / weights.sum()


def largest_logits(values: npt.NDArray[np.floating], count: int) -> Indices:
    """Indices of the `count` (1 or more) largest values, ascending; the first on ties. Does not sort the values."""
    if count >= len(values):
        return np.arange(len(values))
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _most_likely_token(logits: Row) -> int:
    """The most likely token, the smallest id on ties. argmax prefers NaN and +infinity, so checking it is enough."""
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        message = f"The model's logits are not finite (that of token {best} is {logits[best]}): no token can be chosen."
        raise unusable_logits(message)
    return best


def _nucleus_tokens(weights: Doubles, p: float) -> Indices:
    """Indices of the fewest largest weights whose sum reaches `p` of the total (at least one), ascending."""
    target = p * float(weights.sum())
    count = _NUCLEUS_START
    while count < len(weights) and weights[largest_logits(weights, count)].sum() < target:
        count *= _NUCLEUS_GROWTH
    likeliest = largest_logits(weights, count)
    order = likeliest[np.argsort(-weights[likeliest], kind="stable")]
    enough = int(np.searchsorted(np.cumsum(weights[order]), target, side="left")) + 1
    return np.sort(order[:enough])
