"""What is served is compared with what was measured, place by place; numbers by hand."""

from __future__ import annotations

import pytest

from quantyard.protocol.predictions import FilePredictions, PredictedToken, PromptPredictions
from server.api_checks.predictions import (
    MAX_DIFFERENCE,
    PredictionDifference,
    prediction_difference,
    prediction_finding,
)
from server.api_checks.session import BrokenPromise


def place(*pairs: tuple[int, float]) -> PredictedToken:
    return PredictedToken(tokens=tuple(t for t, _ in pairs), logprobs=tuple(p for _, p in pairs))


FIRST, SECOND = place((7, -0.5), (8, -1.5), (9, -6.0)), place((1, -0.1), (2, -2.5))
MEASURED = FilePredictions(prompts=(PromptPredictions(prompt=(3, 4), places=(FIRST, SECOND)),))


@pytest.mark.parametrize(("served", "n_places", "n_agreeing", "largest"), [
    pytest.param((FIRST, SECOND), 2, 2, 0, id="the same"),
    pytest.param((place((7, -0.6), (8, -1.3), (9, -9.0)), SECOND), 2, 2, 0.2, id="rare tokens do not count"),
    pytest.param((place((8, -0.9), (7, -1.0)), SECOND), 1, 0, 0.6, id="what follows another token is not compared"),
    pytest.param((FIRST,), 1, 1, 0, id="the server ended earlier"),
    pytest.param((place((7, -0.5), (6, -2.0)), SECOND), 2, 2, 0.5, id="a likely token is not listed"),
])  # fmt: skip
def test_places_are_compared_up_to_the_first_other_token(
    served: tuple[PredictedToken, ...], n_places: int, n_agreeing: int, largest: float
) -> None:
    found = prediction_difference(MEASURED, [served])
    assert (found.n_places, found.n_agreeing) == (n_places, n_agreeing)
    assert found.largest == pytest.approx(largest)


def test_an_answer_without_log_probabilities_is_a_broken_promise() -> None:
    with pytest.raises(BrokenPromise):
        prediction_difference(MEASURED, [()])


@pytest.mark.parametrize(("found", "is_same", "said"), [
    (PredictionDifference(24, 24, 0.0), True, "24 of 24 tokens as measured, with the same log-probabilities"),
    (PredictionDifference(24, 24, 0.31), True, "up to 0.310 nats apart: within 0.750, but another build"),
    (PredictionDifference(12, 9, 1.41), False, "up to 1.41 nats apart; the limits are 90 % and 0.750: what is served"),
])  # fmt: skip
def test_the_finding_says_what_differs_and_by_how_much(found: PredictionDifference, is_same: bool, said: str) -> None:
    assert said in prediction_finding(found, is_same=is_same)
    assert found.is_exact == (found.largest == 0) and MAX_DIFFERENCE < 1
