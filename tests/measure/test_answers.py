"""Answers of the real demo model: their numbers are their own, and what ended them is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eval.llama.answers import Answer, answer_questions, recommended_sampling
from eval.llama.generator import Generator, Prompt
from eval.llama.model import GgufModel
from eval.llama.sampling import Sampling
from eval.llama.thoughts import ThoughtMarks

QUESTIONS = ["Say only the word yes.", "Name three colours.", "How much is 2 and 2?", "Write a line about rain."]
SAMPLED = Sampling(temperature=0.8, top_k=40, top_p=0.95)


@pytest.fixture(scope="module")
def model(demo_f32: Path) -> Iterator[GgufModel]:
    with GgufModel.load(demo_f32) as model:
        yield model


def asked(model: GgufModel, questions: list[str], max_tokens: int = 16, **options: object) -> list[Answer]:
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in questions]
    return answer_questions(model, prompts, max_tokens=max_tokens, threads=1, **options)


def test_a_block_gives_the_same_bits_in_any_order(model: GgufModel) -> None:
    first = asked(model, QUESTIONS, seeds=(1, 2), sampling=SAMPLED)
    turned = asked(model, QUESTIONS[::-1], seeds=(2, 1), sampling=SAMPLED)
    assert first == [replace(answer, question=3 - answer.question) for answer in turned[::-1]]
    assert [(answer.question, answer.seed) for answer in first[:3]] == [(0, 1), (0, 2), (1, 1)]
    assert len({answer.raw for answer in first if answer.question == 3}) == 2


def test_the_prompt_is_decoded_once_for_all_seeds(model: GgufModel) -> None:
    generator, tokens = Generator(model, 1), model.tokenize(QUESTIONS[0] * 8, add_special=True)
    generator.generate([Prompt(tokens, 1, sampling=replace(SAMPLED, seed=seed)) for seed in range(8)])
    assert generator.n_tokens_decoded == len(tokens) + 7


def test_greedy_answers_are_the_same_for_all_seeds(model: GgufModel) -> None:
    found = asked(model, QUESTIONS[:1], seeds=(5, 6))
    assert [answer.seed for answer in found] == [5, 6]
    assert found[0].text == found[1].text


def test_an_answer_says_how_it_ended(model: GgufModel) -> None:
    ended, cut = asked(model, QUESTIONS[:1], 60)[0], asked(model, QUESTIONS[3:], 3)[0]
    assert ended.is_finished and not ended.is_looped and ended.n_tokens < 60
    assert not cut.is_finished and cut.n_tokens == 3 and cut.n_thought_tokens == 0


def test_an_answer_that_repeats_itself_is_ended_and_counts_as_long_as_it_may_be(model: GgufModel) -> None:
    prompt = "<|im_start|>assistant\n" + "The sea is blue. " * 12
    (found,) = answer_questions(model, [prompt], max_tokens=400, threads=1)
    assert found.is_looped and not found.is_finished
    assert found.n_tokens == 400 and len(model.tokenize(found.raw, add_special=False)) < 100


def test_thoughts_have_a_limit_of_their_own(model: GgufModel) -> None:
    tokens = model.tokenize("Letters: a b c d. Letters: a b c d. Letters: a", add_special=True)
    marks = ThoughtMarks("<", " c")
    prompt = Prompt(tokens, 1, marks=marks, is_thinking=True, max_thought_tokens=2)
    found = Generator(model, 1).generate([prompt])[0]
    assert (found.thoughts, found.text, found.n_thought_tokens) == ("b", " d"[1:], 2)
    unfinished = Generator(model, 1).generate([replace(prompt, max_thought_tokens=1)])[0]
    assert (unfinished.thoughts, unfinished.text, unfinished.is_finished) == ("b", "", False)


def test_the_sampling_of_a_file_is_what_its_metadata_says(demo_gguf: Callable[[str], Path]) -> None:
    with GgufModel.load(demo_gguf("Q4_K_M")) as model:
        own = recommended_sampling(model)
        model.header.metadata.update({"general.sampling.temp": 0.6, "general.sampling.penalty_repeat": 1.1})
        assert recommended_sampling(model) == Sampling(temperature=0.6, repeat_penalty=1.1)
    assert own is None
