"""What a model predicts after the fixed prompts, with which the API test compares what a server of it says."""

from __future__ import annotations

import numpy as np

from eval.llama.context import Context, ContextSettings
from eval.llama.logprobs import LogSoftmax, Rows
from eval.llama.model import GgufModel
from quantyard.protocol.predictions import (
    N_LIKELIEST,
    N_PREDICTED,
    PREDICTION_PROMPTS,
    FilePredictions,
    PredictedToken,
    PromptPredictions,
)

_DECIMALS = 5


def file_predictions(model: GgufModel, threads: int) -> FilePredictions | None:
    """Decode each prompt and the likeliest tokens after it; None for an encoder-decoder, whose prompts are others.

    Raises:
        StageFailure: see `Context` and `LogSoftmax`.
    """
    if model.has_encoder:
        return None
    asked = [model.tokenize(prompt, add_special=True, parse_special=False) for prompt in PREDICTION_PROMPTS]
    longest = max(map(len, asked)) + N_PREDICTED
    with Context(model, ContextSettings(longest, threads=threads)) as context:
        return FilePredictions(prompts=tuple(_prompt_predictions(context, tokens) for tokens in asked))


def _prompt_predictions(context: Context, prompt: list[int]) -> PromptPredictions:
    context.clear()
    softmax, places, tokens = LogSoftmax(context.model.n_vocab), list[PredictedToken](), list(prompt)
    start = 0
    for _ in range(N_PREDICTED):
        row = context.decode_one(np.asarray(tokens[start:], np.int32), start)[-1][-1:]
        start = len(tokens)
        places.append(_predicted_token(softmax, row))
        tokens.append(places[-1].tokens[0])
    return PromptPredictions(prompt=tuple(prompt), places=tuple(places))


def _predicted_token(softmax: LogSoftmax, row: Rows) -> PredictedToken:
    """The likeliest tokens of one row of logits; of equal ones the smallest id first."""
    logprobs = row[0] - softmax.normalizers(row)[0]
    likeliest = np.argsort(-logprobs, kind="stable")[:N_LIKELIEST]
    values = tuple(round(float(logprobs[token]), _DECIMALS) for token in likeliest)
    return PredictedToken(tokens=tuple(map(int, likeliest)), logprobs=values)
