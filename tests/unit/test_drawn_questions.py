"""Which questions a LIMIT takes."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from eval.tasks.drawn_questions import draw_questions


def _task(field: str, of: dict[str, int]) -> list[dict[str, Any]]:
    """Questions sorted by category, as data sets are."""
    return [{"question": f"{value} {i}?", field: value} for value, n in of.items() for i in range(n)]


@pytest.mark.parametrize("field", ["category", "subject", "split_type", "topic", "Level"])
def test_each_category_contributes_its_share_of_any_limit(field: str) -> None:
    documents = _task(field, {"a": 320, "b": 640, "c": 40})
    for limit in (25, 100, 200):
        found = Counter(documents[i][field] for i in draw_questions(documents, 1234).chosen(limit))
        assert all(abs(found[name] - limit * share) <= 1 for name, share in (("a", 0.32), ("b", 0.64), ("c", 0.04)))
        assert sum(found.values()) == limit


def test_a_larger_limit_contains_a_smaller_one() -> None:
    documents = _task("category", {"a": 70, "b": 130})
    drawn = [draw_questions(documents, 7).chosen(limit) for limit in (5, 20, 21, 150)]
    assert all(one < other for one, other in pairwise(drawn))


def test_without_categories_the_draw_is_over_the_whole_task() -> None:
    documents = _task("source_id", {f"video {i}": 1 for i in range(2000)})
    drawn = draw_questions(documents, 1234).chosen(200)
    assert 800 < sum(drawn) / 200 < 1200


def test_another_seed_draws_others_and_the_order_of_the_data_set_changes_nothing() -> None:
    documents = _task("topic", {"a": 50, "b": 50})
    shuffled = random.Random(1).sample(documents, 100)
    one, two, other = (
        {of[i]["question"] for i in draw_questions(of, seed).chosen(30)}
        for of, seed in ((documents, 1), (shuffled, 1), (documents, 2))
    )
    assert one == two != other


def test_a_field_with_hundreds_of_values_is_not_a_category() -> None:
    documents = _task("topic", {f"t{i}": 2 for i in range(300)})
    assert len(draw_questions(documents, 3).chosen(10)) == 10


@pytest.mark.parametrize("limit", [None, 4, 100])
def test_all_are_asked_without_a_limit_or_with_a_large_one(limit: int | None) -> None:
    assert draw_questions(_task("topic", {"a": 4}), 1).chosen(limit) == {0, 1, 2, 3}


# ---- blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "computed"), [(1, 20), (20, 20), (21, 50), (200, 200), (201, 500), (1001, 2000)])
def test_a_limit_computes_whole_blocks_which_are_those_of_the_whole_task(limit: int, computed: int) -> None:
    draw = draw_questions(_task("topic", {"a": 1500, "b": 1500}), 1)
    blocks = draw.blocks()
    assert len(draw.computed(limit)) == computed
    assert draw.chosen(limit) <= draw.computed(limit)
    others = set(blocks) - draw.computed(limit)
    assert {blocks[i] for i in draw.computed(limit)}.isdisjoint(blocks[i] for i in others)


def test_all_questions_are_computed_without_a_limit() -> None:
    draw = draw_questions(_task("topic", {"a": 70}), 1)
    assert len(draw.computed(None)) == 70
    assert Counter(draw.blocks().values()) == {0: 20, 1: 30, 2: 20}
