"""What a file predicts after fixed prompts: as the measurement read it, and as a server of the same file says it.

The measurement decodes each prompt and some tokens more, the likeliest each time, and keeps the log-probabilities of
the likeliest tokens at each place. A server of the same llama.cpp, backend and type of KV cache says the same but for
the order of its sums. Prompts are told to a server as tokens, so that nothing depends on its tokenizer.
"""

from typing import Annotated, Final

from pydantic import Field

from quantyard.protocol.base import Frozen

N_PREDICTED: Final = 6  # tokens after each prompt
N_LIKELIEST: Final = 5  # tokens at each place
# Prose, code, JSON and another language, with letters of one byte: a server keeps back half a character.
PREDICTION_PROMPTS: Final = (
    "The harbour lay quiet under the morning fog. A single boat came in, and the keeper of the lighthouse went to meet",
    'def mean(values):\n    """The mean of a list of numbers."""\n    if not values:\n        raise ValueError(',
    '[{"city": "Paris", "country": "France"}, {"city": "Rome", "country": "Italy"}, {"city": "Madrid", "country":',
    "Die Hauptstadt von Frankreich ist Paris, und sie liegt an der Seine. Die Hauptstadt von Italien ist",
)


class PredictedToken(Frozen):
    """One place after a prompt."""

    tokens: Annotated[tuple[int, ...], Field(min_length=1)]  # the likeliest, first the one that was decoded
    logprobs: Annotated[tuple[float, ...], Field(min_length=1)]  # theirs, in nats


class PromptPredictions(Frozen):
    """What followed one prompt."""

    prompt: Annotated[tuple[int, ...], Field(min_length=1)]  # tokens, special ones among them
    places: tuple[PredictedToken, ...]


class FilePredictions(Frozen):
    """What one file predicts after each of the prompts."""

    prompts: Annotated[tuple[PromptPredictions, ...], Field(min_length=1)]
