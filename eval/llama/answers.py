"""Answers of one model to questions, greedy or sampled with several seeds: what suites of behaviour are judged on.

    sampling = recommended_sampling(model) or Sampling(temperature=0.7)
    answers = answer_questions(
        model, prompts, seeds=(1, 2, 3), max_tokens=512, max_thought_tokens=2048, sampling=sampling,
    )

A question's random numbers depend on its text and the seed alone. The last bits of its logits depend on what is decoded
beside it, as everywhere in llama.cpp: ask fixed blocks of questions, one call each, and an answer is the same bits
whatever else is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from eval.llama.generator import Generated, Generator, OnProgress, Prompt
from eval.llama.loops import ends_in_loop
from eval.llama.model import GgufModel
from eval.llama.sampling import GREEDY, Sampling
from eval.llama.thoughts import opens_thoughts, thought_marks

_SAMPLING_KEY: Final = "general.sampling."  # where llama.cpp's converter puts generation_config.json
_SAMPLING_FIELDS: Final[Mapping[str, str]] = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repeat_penalty",
}


@dataclass(frozen=True)
class Answer:
    """One answer to one question.

    Attributes:
        question: its number in the caller's list.
        seed: it was drawn with.
        text: without special tokens and thoughts, cut before its first stop string.
        thoughts: without their marks; "" of a model that does not think.
        raw: all that was generated, special tokens by their names (`[TOOL_CALLS]`, `<|channel|>` …).
        n_tokens: of the answer.
        n_thought_tokens: before it, marks and headers among them.
        is_finished: whether the model or a stop string ended it; not if it ran into a limit, or ended while thinking.
        is_looped: it did not finish, and repeats itself at its end. It is ended there and counts as long as it may be,
            since it would go on.
    """

    question: int
    seed: int
    text: str
    thoughts: str
    raw: str
    n_tokens: int
    n_thought_tokens: int
    is_finished: bool
    is_looped: bool


def answer_questions(
    model: GgufModel, prompts: Sequence[str], *, max_tokens: int, seeds: Sequence[int] = (0,),
    sampling: Sampling = GREEDY, max_thought_tokens: int = 0, stop: tuple[str, ...] = (), threads: int = 0,
    on_progress: OnProgress = lambda _done, _total: None,
) -> list[Answer]:
    """Answer each question once with each seed; in the order of the questions, then of the seeds.

    Args:
        prompts: whole texts, as the chat template renders them up to where the answer begins.
        max_tokens: of an answer, without thoughts. An answer also ends where the model's context does.
        seeds: greedy answers are the same for all.
        sampling: its own seed does not count.
        max_thought_tokens: before the answer, of a model that thinks; 0: as many as `max_tokens`.
        threads: 0: one per physical core.

    Raises:
        StageFailure: llama.cpp cannot decode, or the logits are not finite.
    """
    drawn = seeds if sampling.temperature else seeds[:1]
    asked = [
        _question_prompt(model, text, max_tokens, max_thought_tokens, stop, replace(sampling, seed=seed))
        for text in prompts for seed in drawn
    ]
    found = Generator(model, threads).generate(asked, on_progress)
    places = [min(place, len(drawn) - 1) for place in range(len(seeds))]
    return [
        _answer_of(model, asked[number * len(drawn) + at], found[number * len(drawn) + at], number, seed)
        for number in range(len(prompts)) for at, seed in zip(places, seeds, strict=True)
    ]


def recommended_sampling(model: GgufModel) -> Sampling | None:
    """How the model's own generation_config.json says to sample; None: it does not say, or says to be greedy."""
    told = {key.removeprefix(_SAMPLING_KEY): value for key, value in model.header.metadata.items()}
    known: dict[str, Any] = {
        _SAMPLING_FIELDS[name]: value for name, value in told.items()
        if name in _SAMPLING_FIELDS and isinstance(value, (int, float))
    }
    if not known:
        return None
    try:
        found = Sampling(**{"temperature": 1.0, **known})
    except ValueError:  # nonsense in the file
        return None
    return found if found.temperature else None


def _question_prompt(
    model: GgufModel, text: str, max_tokens: int, max_thought_tokens: int, stop: tuple[str, ...], sampling: Sampling
) -> Prompt:
    tokens, marks = model.tokenize(text, add_special=False), thought_marks(model.chat_template)
    tokens = model.with_bos(tokens) if model.adds_bos else tokens
    room = max(0, model.n_ctx_train - len(tokens))
    answer = min(max_tokens, room)
    return Prompt(
        tokens, answer, stop, sampling, marks=marks, is_thinking=marks is not None and opens_thoughts(text, marks),
        max_thought_tokens=min(max_thought_tokens or max_tokens, room - answer) if marks else 0, ends_loops=True,
    )


def _answer_of(model: GgufModel, asked: Prompt, found: Generated, question: int, seed: int) -> Answer:
    raw = b"".join(model.piece(token, special=True) for token in found.tokens)
    n_thought, n_answer = found.n_thought_tokens, len(found.tokens) - found.n_thought_tokens
    if found.is_looped and found.is_answered:
        n_answer = asked.max_tokens
    elif found.is_looped:
        n_thought, n_answer = asked.max_thought_tokens or asked.max_tokens, 0
    return Answer(
        question, seed, found.text, found.thoughts, raw.decode(errors="replace"), n_tokens=n_answer,
        n_thought_tokens=n_thought, is_finished=found.is_finished,
        is_looped=found.is_looped or (not found.is_finished and ends_in_loop(found.tokens)),
    )
