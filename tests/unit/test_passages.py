"""Which questions are about one passage."""

from __future__ import annotations

import pytest

from eval.tasks.passages import question_groups

LONG = "Once upon a time there was a small model that had to answer questions about a long article. "


@pytest.mark.parametrize("field", ["article", "context", "passage", "ctx_a", "story"])
def test_questions_about_one_passage_are_a_group_whatever_the_field_is_called(field: str) -> None:
    documents = [{"id": i, field: LONG + str(i // 2), "question": f"What about {i}?"} for i in range(8)]
    assert question_groups(documents) == (0, 0, 1, 1, 2, 2, 3, 3)


def test_questions_of_their_own_have_no_groups() -> None:
    assert question_groups([{"question": LONG + str(i), "choices": ["a", "b"]} for i in range(8)]) == ()
    assert question_groups([]) == ()


def test_a_label_a_goal_and_an_instruction_are_not_passages() -> None:
    documents = [{"activity": "cooking", "goal": "boil an egg", "prompt": LONG, "q": LONG + str(i)} for i in range(8)]
    assert question_groups(documents) == ()


def test_a_passage_that_some_documents_lack_is_not_one() -> None:
    assert question_groups([{"context": LONG}, {"context": LONG}, {"question": "x"}, {"context": None}]) == ()
