"""How far a question's score depends on what is decoded beside it: some questions are scored again in another packing.

A matrix product of another width rounds otherwise, so the last bits of a score depend on the batch that it was in. Each
question has one packing whatever else is asked (eval/tasks/drawn_questions.py), so its score is always the same; but
in another packing it would have been another one. That is an uncertainty beside that of the sample, and it costs a few
per cent of the time to measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from lm_eval.api.instance import Instance

from eval.llama.lm import LlamaLM
from eval.llama.packing_noise import accuracy_noise, answer_spread, score_sd
from quantyard.protocol.task_results import AccuracyNoise, LayoutNoise

_SHARE: Final = 20  # one question in so many
_LEAST, _MOST = 8, 32  # of a task; never more than half of it, which would be the same packing

T = TypeVar("T")
Sample = Mapping[str, Any]  # lm-eval's: `arguments`, (context, continuation) of each request, and `resps`


def layout_noise_of_task(lm: LlamaLM, samples: Sequence[Sample], task: str = "") -> LayoutNoise | None:
    """Score some of a task's questions again, without the others; None where there are too few.

    Args:
        samples: of one filter, each question once; their requests are loglikelihoods.
        task: its name, by which answers of another run are found.
    """
    chosen = questions_to_repack(samples)
    asked = [arguments for sample in chosen for arguments in sample["arguments"]]
    if not asked:
        return None
    known = lm.answered.get(repacked_unit_name(task))
    again = known.values() if known else repacked_scores(lm, asked)
    lm.answered_s += known.duration_s if known else 0.0
    before = [(float(score), bool(greedy)) for sample in chosen for score, greedy in _sample_scores(sample)]
    moved = [new[0] - old[0] for new, old in zip(again, before, strict=True)]
    flips, start, moved_by_question = 0, 0, list[Sequence[float]]()
    for sample in chosen:
        end = start + len(sample["arguments"])
        flips += _picked_answer(again[start:end]) != _picked_answer(before[start:end])
        moved_by_question.append(moved[start:end])
        start = end
    return LayoutNoise(
        n_questions=len(chosen), n_requests=len(asked), sd_nats=score_sd(moved), flips=flips,
        accuracy=_accuracy_noise(samples, answer_spread(moved_by_question)),
    )  # fmt: skip


def _accuracy_noise(samples: Sequence[Sample], spread: float) -> AccuracyNoise | None:
    """Of a task with choices and an accuracy; None of another."""
    right = [bool(sample["acc"]) for sample in samples if "acc" in sample]
    scores = [[score for score, _ in _sample_scores(sample)] for sample in samples]
    if len(right) < max(2, len(samples)) or min(map(len, scores)) < 2:
        return None
    return accuracy_noise(right, scores, spread)


def repacked_unit_name(task: str) -> str:
    """The name of the unit with a task's questions in another packing; see `question_units`."""
    return f"again {task}"


def repacked_scores(lm: LlamaLM, asked: Sequence[Sequence[Any]]) -> list[tuple[float, bool]]:
    """The loglikelihoods of these pairs of context and continuation, scored together."""
    fresh = LlamaLM(lm.model, lm.max_length, lm.scorer.n_threads)  # which counts its own requests
    return fresh.loglikelihood([Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(asked)])


def questions_to_repack(questions: Sequence[T]) -> Sequence[T]:
    """Some of a task's questions, evenly spread."""
    n = min(_MOST, max(_LEAST, len(questions) // _SHARE), len(questions) // 2)
    return [questions[i * len(questions) // n] for i in range(n)]


def _sample_scores(sample: Sample) -> Sequence[tuple[float, bool]]:
    """Of each request, the loglikelihood and whether it is greedy."""
    return [resp[0] for resp in sample["resps"]]


def _picked_answer(scores: Sequence[tuple[float, bool]]) -> int:
    """The most likely continuation; of a single one, whether greedy decoding gives it."""
    return int(scores[0][1]) if len(scores) == 1 else int(np.argmax([score for score, _ in scores]))
