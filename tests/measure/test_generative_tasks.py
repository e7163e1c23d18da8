"""lm-eval's own generative tasks of the suite `full`: their checkers are installed and run without a network.

The data sets are not here. Hand-made questions in their format take their place, as the stage `datasets` leaves them.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import datasets
import pytest

from eval.tasks import offline
from eval.tasks.load import LeafTask, load_tasks
from quantyard.plan.suites import find_suite
from quantyard.protocol.evaluation import TaskEntry

MATH, SUBJECT = "DigitalLearningGmbH/MATH-lighteval", "algebra"
PROBLEMS = [
    {"problem": "What is $1/4 + 1/4$?", "level": "Level 5", "type": "Algebra",
     "solution": "Adding gives $\\frac{2}{4} = \\boxed{\\frac{1}{2}}$."},
    {"problem": "Solve $2x = 10 - 3y$ for $x$.", "level": "Level 5", "type": "Algebra",
     "solution": "Halving both sides, $x = \\boxed{5 - \\frac{3y}{2}}$."},
    {"problem": "What is 1 + 1?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."},
]  # fmt: skip
WORDS = [
    {"question": f"Ann has {n} apples and gets {n} more. How many?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"}
    for n in (600, 7, 8, 9, 10, 11, 12)
]
# Each asks for what one of IFEval's checkers sees: a language, sentences, commas, words, JSON.
INSTRUCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("language:response_language", {"language": "de"}),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}),
    ("punctuation:no_comma", {}),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 5}),
    ("detectable_format:json_format", {}),
]
IFEVAL = [
    {"key": number, "prompt": f"Write a line ({name}).", "instruction_id_list": [name], "kwargs": [given]}
    for number, (name, given) in enumerate(INSTRUCTIONS)
]


def fetched(folder: Path, path: str, name: str | None, rows: list[dict[str, Any]]) -> offline.FetchedSet:
    """A data set as the stage `datasets` leaves it."""
    splits = {split: datasets.Dataset.from_list(rows) for split in ("train", "test")}
    place = f"sets/{path.rpartition('/')[2]}"
    datasets.DatasetDict(splits).save_to_disk(str(folder / place))
    return offline.FetchedSet(
        path=path, name=name, options={}, commit="0" * 40, rows={split: len(rows) for split in splits},
        folder=place,
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a checker wants a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def load(tmp_path: Path, no_network: None) -> Any:
    """Builds one task of lm-eval's from the hand-made data."""
    sets = (
        fetched(tmp_path, MATH, SUBJECT, PROBLEMS), fetched(tmp_path, "openai/gsm8k", "main", WORDS),
        fetched(tmp_path, "google/IFEval", None, IFEVAL),
    )  # fmt: skip
    (tmp_path / offline.INDEX).write_text(offline.FetchedSets(sets=sets).model_dump_json())
    (tmp_path / "scratch").mkdir()
    offline.take_datasets_offline(tmp_path, tmp_path / "scratch")

    def one(task: str, shots: int) -> LeafTask:
        (leaf,) = load_tasks([TaskEntry(task=task, num_fewshot=shots)])
        leaf.task.build_all_requests()
        return leaf

    return one


def scores(leaf: LeafTask, texts: list[str], metric: str = "exact_match") -> list[float]:
    """What the task's own filters and checker make of these answers to its questions, in order."""
    task = leaf.task
    for instance, text in zip(task.instances, texts, strict=True):
        instance.resps = [text]
    task.apply_filters()
    key = task.instances[0].filtered_resps
    name = next(iter(key))
    return [float(task.process_results(one.doc, [one.filtered_resps[name]])[metric]) for one in task.instances]


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (("So the answer is $\\boxed{0.5}$.", "Final Answer: The final answer is $5 - 1.5y$."), [1, 1]),
        (("$\\boxed{\\frac{3}{6}}$", "$\\boxed{\\frac{10 - 3y}{2}}$"), [1, 1]),
        (("$\\boxed{\\frac{1}{3}}$", "$\\boxed{5 + \\frac{3y}{2}}$"), [0, 0]),
        (("I do not know.", ""), [0, 0]),
    ],
)
def test_answers_of_math_are_compared_as_expressions(load: Any, answers: tuple[str, str], right: list[int]) -> None:
    pytest.importorskip("math_verify")
    leaf = load("leaderboard_math_algebra_hard", 4)
    assert len(leaf.task.instances) == 2  # of level 5
    assert "det" in leaf.task.instances[0].args[0]  # its four examples come with it
    assert scores(leaf, list(answers)) == right


def test_answers_of_gsm8k_are_found_in_their_text(load: Any) -> None:
    leaf = load("gsm8k", 5)
    given = ["600 and 600 make\n#### 1,200", "#### 14", "It is 16", "#### 19", "#### 20", "", "#### 24."]
    assert scores(leaf, given) == [1, 1, 0, 0, 1, 0, 1]


@pytest.fixture
def sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NLTK's data for splitting English into sentences, in its format: one abbreviation, nothing learnt beside it."""
    nltk = pytest.importorskip("nltk")
    folder = tmp_path / offline.NLTK_DATA / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (folder / name).write_text("")
    (folder / "abbrev_types.txt").write_text("dr\n")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / offline.NLTK_DATA)])


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (("Das ist ein kurzer Satz auf Deutsch.", "Dr. Lee came. He sat.", "No comma", "a b c d e", "[1]"), 5 * [1]),
        (("This is a short sentence in English.", "He came. He sat. He left.", "A, b", "a b c d", "one"), 5 * [0]),
    ],
)
def test_answers_of_ifeval_are_checked_by_its_instructions(
    load: Any, sentences: None, answers: tuple[str, ...], right: list[int]
) -> None:
    pytest.importorskip("langdetect")
    leaf = load("ifeval", 0)
    for metric in ("prompt_level_strict_acc", "prompt_level_loose_acc"):
        assert scores(leaf, list(answers), metric) == right


def test_the_language_of_an_answer_is_the_same_at_every_look(load: Any, sentences: None) -> None:
    langdetect = pytest.importorskip("langdetect")
    load("ifeval", 0)
    mixed = "die si et"  # without a seed: Afrikaans, Italian or French
    assert len({langdetect.detect(mixed) for _ in range(20)}) == 1


def test_the_suite_full_asks_them() -> None:
    assert {"gsm8k", "ifeval", "leaderboard_math_hard"} <= {entry.task for entry in find_suite("full").suite.tasks}
