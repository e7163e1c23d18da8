"""Checks the measurement itself on the file and machine in use, before the first task.

Three bugs would go unnoticed: log-probabilities that are off by one token, packing that changes what a sequence
attends to, and loglikelihood requests that disagree with rolling ones. Each has its check. The tolerance for packing
is not a constant: an A/A control decodes the same sequences unpacked with flash attention on and off, and packed
scores may differ from unpacked ones by at most `NOISE_FACTOR` times that noise.

There are no continuations that every encoder-decoder knows: one translates, one fills gaps. Its known answers are its
own: what it writes greedily must be what it scores as the likeliest, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from lm_eval.api.instance import Instance

from eval.llama.context import Context, ContextSettings, FlashAttention
from eval.llama.lm import LlamaLM
from eval.llama.logprobs import LogSoftmax
from eval.llama.prefix_tree import Request, answer_request
from quantyard.formatting.numbers import format_digits
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.protocol.task_results import SelfCheck

NOISE_FACTOR: Final = 1.5
ROLLING_TOLERANCE: Final = 1e-3  # nats per token
_OWN_TOKENS: Final = 8  # of an answer that an encoder-decoder writes itself
_MIN_RIGHT: Final = 0.75  # share of the known answers; guessing gets 0.5, and reaches this once in 50 times

# To add a known answer: a text that every language model can continue, its next word, and its last word again.
# Scores that are off by one token prefer the last word, because that is the right answer one token earlier.
KNOWN_ANSWERS: Final = (
    ("2 4 6 8 10 12", " 14", " 12"),
    ("10 11 12 13 14 15 16", " 17", " 16"),
    ("A B C D E F G H", " I", " H"),
    ("a b c d e f g", " h", " g"),
    ("January, February, March, April, May", " June", " May"),
    ("The sun is hot. The sun is hot. The sun is", " hot", " is"),
    ("My name is Tom. My name is Tom. My name is", " Tom", " is"),
    ("We went to the beach. We went to the beach. We went to the", " beach", " the"),
    ("It was a dark night. It was a dark night. It was a", " dark", " a"),
    ("He paid for the bread. He paid for the bread. He paid for the", " bread", " the"),
    ("The capital of France is Paris. The capital of France is", " Paris", " is"),
    ("The dog ran after the cat. The dog ran after the", " cat", " the"),
    ("x = 1; y = 2; x = 1; y =", " 2", " ="),
    ("def add(a, b): return a + b; def add(a, b): return", " a", " return"),
    ("Once upon a", " time", " a"),
    ("She opened the door and looked", " at", " looked"),
)
# Continuations of several tokens after prefixes that branch, which is what packing must get right.
_STEMS: Final = (
    "The river was high that morning, and the old bridge",
    "The river was high that morning, and nobody in the village",
    "To repair a bicycle wheel, first take off the tire and then",
    "In winter the days are short, so the farmer",
)
_ENDINGS: Final = (
    " had been closed since the day before.", " look for the hole with care.",
    " began his work by the light of a lamp.",
)

Doubles = npt.NDArray[np.float64]


def self_check(lm: LlamaLM, on_progress: Callable[[int, int], None] = lambda _done, _total: None) -> SelfCheck:
    """Check the measurement on this model.

    Raises:
        StageFailure: `self-check` (3 if the model's answers are wrong, 70 if our computation is).
    """
    answers = _self_check_known_answers(lm)
    on_progress(1, 3)
    packed, plain, control = _self_check_three_ways(lm)
    on_progress(2, 3)
    found = SelfCheck(
        known_answers=len(KNOWN_ANSWERS), known_answers_right=answers,
        packed_difference=_self_check_rms(packed - plain), noise=_self_check_rms(control - plain),
        rolling_difference=_self_check_rolling_difference(lm), n_tokens=len(plain),
    )
    on_progress(3, 3)
    _judge_self_check(found, has_encoder=lm.model.has_encoder)
    return found


def _self_check_known_answers(lm: LlamaLM) -> int:
    """How many are right."""
    if lm.model.has_encoder:
        return _self_check_own_answers(lm)
    pairs = [(context, text) for context, right, wrong in KNOWN_ANSWERS for text in (right, wrong)]
    scores = [score for score, _greedy in lm.loglikelihood(_self_check_instances("loglikelihood", pairs))]
    return sum(right > wrong for right, wrong in zip(scores[::2], scores[1::2], strict=True))


def _self_check_own_answers(lm: LlamaLM) -> int:
    """How many of the texts that the model writes are also its greedy answers when they are scored."""
    read = [tuple(lm.tok_encode(context)) for context, _right, _wrong in KNOWN_ANSWERS]
    start = lm.model.decoder_start
    settings = ContextSettings(_OWN_TOKENS, 1, lm.scorer.n_threads, n_encoded=max(map(len, read)))
    with Context(lm.model, settings) as context:
        written = [_self_check_answer(context, encoded, start) for encoded in read]
    asked = [answer_request(encoded, tokens, start) for encoded, tokens in zip(read, written, strict=True)]
    return sum(is_greedy for _score, is_greedy in lm.scorer.score(asked).sums())


def _self_check_answer(context: Context, encoded: Sequence[int], start: int) -> list[int]:
    """The model's greedy answer, decoded token by token, with the token that ends it."""
    context.clear()
    context.encode(encoded)
    tokens: list[int] = []
    while len(tokens) < _OWN_TOKENS and not (tokens and context.model.ends_generation(tokens[-1])):
        last = np.array([tokens[-1] if tokens else start], np.int32)
        tokens.append(int(context.decode_one(last, len(tokens))[0][0].argmax()))
    return tokens


def _self_check_three_ways(lm: LlamaLM) -> tuple[Doubles, Doubles, Doubles]:
    """Log-probabilities of the same requests: packed, unpacked, and unpacked with flash attention off."""
    requests = self_check_requests(lm)
    packed = lm.scorer.score(requests).logprobs
    plain = self_check_logprobs(lm, requests, "auto")
    control = self_check_logprobs(lm, requests, "off")
    if np.array_equal(control, plain):  # no flash attention for this model: change the order of the sums otherwise
        control = self_check_logprobs(lm, requests, "auto", one_by_one=True)
    return packed, plain, control


def self_check_requests(lm: LlamaLM) -> list[Request]:
    """Every stem with every ending."""
    return [lm.request(stem, ending) for stem in _STEMS for ending in _ENDINGS]


def self_check_logprobs(
    lm: LlamaLM, requests: Sequence[Request], flash_attention: FlashAttention, *, one_by_one: bool = False
) -> Doubles:
    """The same scores without packing: one sequence at a time, from an empty KV cache; nats, shape (targets,)."""
    longest = max(len(request.tokens) for request in requests)
    n_encoded = max(len(request.encoded) for request in requests)
    softmax = LogSoftmax(lm.model.n_vocab)
    found = []
    settings = ContextSettings(longest, 1, lm.scorer.n_threads, n_encoded, flash_attention)
    with Context(lm.model, settings) as context:
        for request in requests:
            context.clear()
            if request.encoded:
                context.encode(request.encoded)
            rows = _self_check_rows(context, request, one_by_one)
            targets = np.asarray(request.targets, np.int32)
            found.append(softmax.of_tokens(rows, np.arange(len(targets)), targets))
    return np.concatenate(found)


def _self_check_rows(context: Context, request: Request, one_by_one: bool) -> npt.NDArray[np.float32]:
    tokens = np.asarray(request.tokens, np.int32)
    if not one_by_one:
        return np.concatenate(context.decode_one(tokens, n_rows=len(request.targets)))
    rows = [context.decode_one(tokens[at : at + 1], start=at)[0] for at in range(len(tokens))]
    return np.concatenate(rows[-len(request.targets) :])


def _self_check_rolling_difference(lm: LlamaLM) -> float:
    """Largest difference, in nats per token, between a text's loglikelihood without context and its rolling one."""
    texts = [stem + ending for stem, ending in zip(_STEMS, _ENDINGS, strict=False)]
    rolling = lm.loglikelihood_rolling(_self_check_instances("loglikelihood_rolling", [(text,) for text in texts]))
    sums = lm.loglikelihood(_self_check_instances("loglikelihood", [("", text) for text in texts]))
    lengths = [len(lm.tok_encode(text, add_special_tokens=False)) for text in texts]
    return max(abs(a - b) / n for a, (b, _), n in zip(rolling, sums, lengths, strict=True))


def _self_check_instances(kind: str, arguments: Sequence[tuple[str, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def _self_check_rms(values: Doubles) -> float:
    return float(np.sqrt(np.mean(values**2)))


@dataclass(frozen=True)
class _Rule:
    holds: bool
    message: str
    exit_code: ExitCode
    hint: str


def _judge_self_check(found: SelfCheck, *, has_encoder: bool) -> None:
    right, asked = found.known_answers_right, found.known_answers
    ours = "The scores would be wrong, so nothing was measured. Report it, with the log."
    rules = (
        _Rule(
            has_encoder or right >= _MIN_RIGHT * asked,
            f"only {right} of {asked} well-known continuations are more likely than wrong ones",
            ExitCode.UNSUPPORTED_MODEL, "The file is broken, or not a model of ordinary text. Verify it: make build.",
        ),
        _Rule(
            not has_encoder or right >= _MIN_RIGHT * asked,
            f"only {right} of {asked} answers that the model wrote are its likeliest ones when they are scored",
            ExitCode.BUG, ours,
        ),
        _Rule(
            found.packed_difference <= NOISE_FACTOR * found.noise,
            f"packed scores differ from unpacked ones by {format_digits(found.packed_difference, 2)} nats per token, "
            f"and the numerical noise is {format_digits(found.noise, 2)}", ExitCode.BUG, ours,
        ),
        _Rule(
            found.rolling_difference <= ROLLING_TOLERANCE,
            "the loglikelihood and the rolling loglikelihood of the same text differ by "
            f"{format_digits(found.rolling_difference, 2)} nats per token", ExitCode.BUG, ours,
        ),
    )
    for rule in rules:
        if not rule.holds:
            raise StageFailure(rule.exit_code, "self-check", f"The self-check failed: {rule.message}.", rule.hint)
