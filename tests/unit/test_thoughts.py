"""Thoughts are told from answers, however tokens cut the marks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.llama.loops import ends_in_loop
from eval.llama.sampling import GeneratedText
from eval.llama.thoughts import THOUGHT_MARKS, LlamaTranscript, ThoughtMarks, opens_thoughts, thought_marks

THINK = ThoughtMarks("<think>", "</think>")
HARMONY = THOUGHT_MARKS[0]
SPECIAL = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|call|>")


def read(
    text: str, marks: ThoughtMarks, sizes: list[int], stop: tuple[str, ...] = (), *, thinking: bool = False
) -> LlamaTranscript:
    """A transcript of a text that comes in pieces of these sizes, ended where a stop string says so."""
    said, at, number = LlamaTranscript(GeneratedText(stop), marks, is_thinking=thinking), 0, 0
    while at < len(text):
        size = sizes[number % len(sizes)]
        if said.add(text[at : at + size].encode()):
            break
        at, number = at + size, number + 1
    return said


def read_named(tokens: list[str], marks: ThoughtMarks) -> LlamaTranscript:
    """A transcript of tokens, of which those in `SPECIAL` add nothing to a text."""
    said = LlamaTranscript(GeneratedText(()), marks)
    for token in tokens:
        said.add(*((b"", token.encode()) if token in SPECIAL else (token.encode(), b"")))
    return said


sizes = st.lists(st.integers(1, 12), min_size=1, max_size=4)
plain = st.text("ab <\n", max_size=20)


@given(plain, plain, sizes)
def test_thoughts_and_answer_come_apart_wherever_tokens_end(thought: str, answer: str, cuts: list[int]) -> None:
    said = read(f"<think>{thought}</think>\n\n{answer}", THINK, cuts)
    assert said.thoughts() == thought.strip()
    assert said.answer() == answer.lstrip()


@given(plain, plain, sizes)
def test_a_prompt_that_opens_the_thoughts_needs_no_mark(thought: str, answer: str, cuts: list[int]) -> None:
    said = read(f"{thought}</think>{answer}", THINK, cuts, thinking=True)
    assert (said.thoughts(), said.answer()) == (thought.strip(), answer.lstrip())


@given(plain.filter(lambda text: not text.lstrip().startswith("<think>")), sizes)
def test_a_text_without_thoughts_is_all_answer(text: str, cuts: list[int]) -> None:
    said = read(text, THINK, cuts)
    assert (said.thoughts(), said.answer()) == ("", text)


@pytest.mark.parametrize("text", ["<", "<thi", "<think", " \n<t"])
def test_a_beginning_of_the_mark_that_goes_no_further_is_answer(text: str) -> None:
    assert read(text, THINK, [1]).answer() == text


def test_a_thought_without_an_end_leaves_no_answer() -> None:
    said = read("<think>and then, and then", THINK, [3])
    assert (said.answer(), said.has_answer, said.is_answered) == ("", False, False)
    assert said.thoughts() == "and then, and then"


def test_stop_strings_count_in_the_answer_alone() -> None:
    said = read("<think>a\n\nb</think>\n\nfour\n\nfive", THINK, [1], ("\n\n",))
    assert (said.thoughts(), said.answer()) == ("a\n\nb", "four")


def test_tokens_are_counted_on_their_side() -> None:
    said = LlamaTranscript(GeneratedText(()), THINK)
    for piece in ("<think>", "x", "y", "</think>", "A", "B"):
        said.add(piece.encode())
    assert (said.n_thought_tokens, said.n_answer_tokens) == (4, 2)
    said = LlamaTranscript(GeneratedText(()), THINK)
    for piece in ("<", "b>", "c"):
        said.add(piece.encode())
    assert (said.n_thought_tokens, said.n_answer_tokens) == (0, 3)


def test_harmony_channels_are_thoughts_and_answer() -> None:
    said = read_named(
        ["<|channel|>", "analysis", "<|message|>", "Two", " twos", "<|end|>", "<|start|>", "assistant", "<|channel|>",
         "final", "<|message|>", "4"], HARMONY,
    )  # fmt: skip
    assert (said.thoughts(), said.answer()) == ("Two twos", "4")
    assert read_named(["<|channel|>", "final", "<|message|>", "4"], HARMONY).answer() == "4"
    assert read_named(["4", " it", " is"], HARMONY).answer() == "4 it is"


def test_harmony_may_think_twice_and_call_a_tool() -> None:
    thought = ["<|channel|>", "analysis", "<|message|>", "hm", "<|end|>", "<|start|>", "assistant"]
    call = ["<|channel|>", "commentary", " to=functions.f", "<|message|>", '{"a": 1}']
    said = read_named([*thought, *thought, *call], HARMONY)
    assert (said.thoughts(), said.answer()) == ("hmhm", '{"a": 1}')
    assert read_named([*thought, "<|channel|>", "fi"], HARMONY).answer() == ""


def test_a_model_that_thinks_without_an_opening_mark() -> None:
    apriel = next(marks for marks in THOUGHT_MARKS if not marks.opens)
    said = read("first, then\n[BEGIN FINAL RESPONSE]\n4", apriel, [4], thinking=opens_thoughts("Here:", apriel))
    assert (said.thoughts(), said.answer()) == ("first, then", "4")


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [("<|assistant|>\n<think>\n", True), ("<|assistant|>\n<think>\n\n</think>\n\n", False), ("", False)],
)
def test_a_prompt_opens_thoughts_at_its_end(prompt: str, *, opens: bool) -> None:
    assert opens_thoughts(prompt, THINK) is opens


def test_a_template_without_marks_has_none() -> None:
    assert thought_marks(None) is None
    assert thought_marks("{% for message in messages %}{{ message.content }}{% endfor %}") is None


@pytest.mark.parametrize("period", [1, 3, 10, 50])
def test_a_loop_at_the_end_is_found(period: int) -> None:
    once = list(range(100, 100 + period))
    n = max(4, -(-40 // period))
    assert ends_in_loop([*range(20), *once * n])
    assert ends_in_loop([*range(20), *once * n, *once[: period // 2]])
    assert not ends_in_loop([*range(20), *once * (n - 1)])
    assert not ends_in_loop([*once * n, 7])


def test_a_text_that_does_not_repeat_is_no_loop() -> None:
    assert not ends_in_loop(range(200))
    assert not ends_in_loop([])
