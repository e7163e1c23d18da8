"""Whether a server says what was measured: the likeliest tokens after fixed prompts, and their log-probabilities.

A prompt is compared up to the first place where the server takes another token, since what follows has another context.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

from pydantic import JsonValue

from quantyard.formatting.numbers import format_digits, format_rough_percent
from quantyard.protocol.predictions import N_LIKELIEST, FilePredictions, PredictedToken, PromptPredictions
from server.api_checks.outcome import CheckOutcome
from server.api_checks.session import ApiSession, need_promise, shown_api_answer

_COMPLETION: Final = "/completion"
_LIKELY: Final = -4.6  # nats, 1 %: log-probabilities of rarer tokens say little
_EXACT: Final = 1e-3  # nats: the measurement keeps five decimals, and sums may be in another order
# Seen with the demo model: the same build of llama.cpp 0.000 nats, another build 0.06 to 0.57, an 8-bit KV cache 0.14
# to 0.53, a 4-bit one 1.0 to 2.1, and every tenth to fourth token another. With random models of llama, Qwen 3 and
# Gemma 3: another build 0 to 0.12, an 8-bit cache 0.14 to 0.26 and at most one token in twenty another, a 4-bit one
# 0.69 to 1.2 and every fifth to third token; so both limits are needed.
MAX_DIFFERENCE: Final = 0.75  # nats
MIN_AGREEMENT: Final = 0.9  # of the places that were compared


@dataclass(frozen=True)
class PredictionDifference:
    """How far a server is from what was measured."""

    n_places: int
    n_agreeing: int  # where the server takes the token that was measured as the likeliest
    largest: float  # |Δ log-probability| of a token among the likeliest of both, in nats

    @property
    def agreement(self) -> float:
        return self.n_agreeing / self.n_places

    @property
    def is_exact(self) -> bool:
        """Whether nothing tells the two apart."""
        return self.n_agreeing == self.n_places and self.largest <= _EXACT


def check_predictions(session: ApiSession) -> CheckOutcome:
    """Compare what the server predicts with `session.measured`."""
    if session.measured is None:
        return CheckOutcome("not supported", "not applicable: this file was not measured; make eval measures it")
    found = prediction_difference(session.measured, [_served_places(session, p) for p in session.measured.prompts])
    is_same = found.largest <= MAX_DIFFERENCE and found.agreement >= MIN_AGREEMENT
    facts: dict[str, JsonValue] = {
        "n_places": found.n_places, "agreement": found.agreement, "max_difference": found.largest,
        "is_exact": found.is_exact,
    }  # fmt: skip
    return CheckOutcome("passed" if is_same else "failed", prediction_finding(found, is_same=is_same), facts)


def prediction_finding(found: PredictionDifference, *, is_same: bool) -> str:
    """The line of the report."""
    said = f"{found.n_agreeing} of {found.n_places} tokens as measured"
    if found.is_exact:
        return f"{said}, with the same log-probabilities"
    said = f"{said}, log-probabilities up to {format_digits(found.largest)} nats apart"
    if is_same:
        within = format_digits(MAX_DIFFERENCE)
        return f"{said}: within {within}, but another build of llama.cpp, backend or KV cache than measured"
    limits = f"{format_rough_percent(MIN_AGREEMENT)} and {format_digits(MAX_DIFFERENCE)}"
    return f"{said}; the limits are {limits}: what is served has another build, backend or KV cache than was measured"


def prediction_difference(
    measured: FilePredictions, served: list[tuple[PredictedToken, ...]]
) -> PredictionDifference:
    """Compare place by place, `served` in the order of the measured prompts."""
    n_places, n_agreeing, largest = 0, 0, 0.0
    for prompt, places in zip(measured.prompts, served, strict=True):
        for ours, theirs in zip(prompt.places, places, strict=False):
            n_places += 1
            largest = max(largest, _largest_difference(ours, theirs))
            if ours.tokens[0] != theirs.tokens[0]:
                break
            n_agreeing += 1
    need_promise(n_places > 0, "the server gave no log-probabilities")
    return PredictionDifference(n_places, n_agreeing, largest)


def _largest_difference(ours: PredictedToken, theirs: PredictedToken) -> float:
    """Of the likely tokens; one that the server does not list is at most as likely as the last of its list."""
    served, least = dict(zip(theirs.tokens, theirs.logprobs, strict=True)), min(theirs.logprobs)
    likely = [(t, value) for t, value in zip(ours.tokens, ours.logprobs, strict=True) if value >= _LIKELY]
    return max(abs(value - served.get(token, least)) for token, value in likely or [(ours.tokens[0], ours.logprobs[0])])


def _served_places(session: ApiSession, prompt: PromptPredictions) -> tuple[PredictedToken, ...]:
    """What the server predicts after a prompt, up to a token that it keeps back since it is part of a character."""
    asked = {
        "model": session.model, "prompt": list(prompt.prompt), "n_predict": len(prompt.places), "temperature": 0,
        "n_probs": 2 * N_LIKELIEST, "cache_prompt": False, "return_tokens": True,
    }  # fmt: skip
    answer = session.wire.post(_COMPLETION, asked)
    places = answer.body.get("completion_probabilities")
    need_promise(
        answer.status == 200 and isinstance(places, list), f"no log-probabilities: {shown_api_answer(answer)}"
    )
    found = tuple(_served_place(place) for place in places or ())
    tokens = answer.body.get("tokens") or [place.tokens[0] for place in found]
    same = takewhile(lambda both: both[0].tokens[0] == both[1], zip(found, tokens, strict=False))
    return tuple(place for place, _ in same)


def _served_place(place: dict[str, Any]) -> PredictedToken:
    """One place; the token that was taken comes first."""
    likeliest = [(int(one["id"]), float(one["logprob"])) for one in place["top_logprobs"]]
    taken = int(place["id"])
    likeliest.sort(key=lambda one: one[0] != taken)
    return PredictedToken(tokens=tuple(t for t, _ in likeliest), logprobs=tuple(p for _, p in likeliest))
