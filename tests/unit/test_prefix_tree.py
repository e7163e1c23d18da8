"""The plan of packing: what is decoded, where each row comes from, and that no limit is broken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.llama.prefix_tree import Limits, PrefixPlan, Request, plan_prefix_tree

ROOMY = Limits(batch_tokens=512, cells=4096, sequences=255)


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    """Random sequences over few tokens, so that prefixes are often shared, duplicates and prefixes of others too."""
    tokens = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=30))
    return [
        Request(sequence, draw(st.lists(st.integers(0, 9), min_size=1, max_size=len(sequence))))
        for sequence in tokens
    ]


limits = st.builds(
    Limits, batch_tokens=st.integers(1, 40), cells=st.integers(12, 60), sequences=st.integers(1, 6),
)


def tree_size(asked: list[Request]) -> int:
    """Nodes of the prefix tree, counted the slow way."""
    return len({tuple(request.tokens[: n + 1]) for request in asked for n in range(len(request.tokens))})


def decoded(plan: PrefixPlan) -> list[tuple[int, int]]:
    """(sequence, depth) of every token in the order of decoding."""
    return [
        (number, depth)
        for group in plan.groups
        for number in range(group.first, group.last)
        for depth in range(int(plan.common[number]), len(plan.sequences[number]))
    ]


@given(requests(), limits)
def test_every_node_of_the_tree_is_decoded_once(asked: list[Request], allowed: Limits) -> None:
    plan = plan_prefix_tree(asked, allowed)
    nodes = [tuple(plan.sequences[number][: depth + 1]) for number, depth in decoded(plan)]
    assert len(nodes) == plan.n_tokens
    assert len(set(nodes)) == len(nodes) == tree_size(asked)


@pytest.mark.commands
@given(requests(), limits)
def test_every_target_finds_the_row_that_follows_its_own_prefix(asked: list[Request], allowed: Limits) -> None:
    plan = plan_prefix_tree(asked, allowed)
    places = set(decoded(plan))
    for number, request in enumerate(asked):
        start = len(request.tokens) - len(request.targets)
        for i, target in enumerate(request.targets):
            at = plan.targets.offsets[number] + i
            sequence, depth = int(plan.targets.sequence[at]), int(plan.targets.depth[at])
            assert (sequence, depth) in places
            assert plan.sequences[sequence][: depth + 1].tolist() == list(request.tokens[: start + i + 1])
            assert plan.targets.token[at] == target


@given(requests(), limits)
def test_a_group_breaks_no_limit_and_only_a_long_sequence_is_alone(asked: list[Request], allowed: Limits) -> None:
    plan = plan_prefix_tree(asked, allowed)
    assert [group.first for group in plan.groups] == [0, *[group.last for group in plan.groups][:-1]]
    assert plan.groups[-1].last == len(plan.sequences)
    for group in plan.groups:
        members = range(group.first, group.last)
        added = sum(len(plan.sequences[j]) - int(plan.common[j]) for j in members)
        assert group.kept == plan.common[group.first]
        if len(members) > 1:
            assert added <= allowed.batch_tokens and group.kept + added <= allowed.cells
            assert len(members) <= allowed.sequences


@pytest.mark.commands
@given(requests(), limits)
def test_what_a_group_keeps_lies_on_the_last_path_of_the_group_before(asked: list[Request], allowed: Limits) -> None:
    plan = plan_prefix_tree(asked, allowed)
    for before, group in zip(plan.groups, plan.groups[1:], strict=False):
        path = plan.sequences[before.last - 1]
        for number in range(group.first, group.last):
            shared = min(int(plan.common[j]) for j in range(group.first, number + 1))
            assert np.array_equal(path[:shared], plan.sequences[number][:shared])


@pytest.mark.commands
@given(requests(), st.randoms(use_true_random=False))
def test_the_order_of_the_requests_changes_nothing_that_is_decoded(asked: list[Request], shuffler: object) -> None:
    shuffled = list(asked)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = plan_prefix_tree(asked, ROOMY), plan_prefix_tree(shuffled, ROOMY)
    assert [s.tolist() for s in one.sequences] == [s.tolist() for s in other.sequences]
    assert list(one.groups) == list(other.groups)


def test_tokens_above_255_sort_as_numbers_and_not_as_their_bytes() -> None:
    plan = plan_prefix_tree([Request([256, 1], [0]), Request([1, 256], [0]), Request([65536], [0])], ROOMY)
    assert [s.tolist() for s in plan.sequences] == [[1, 256], [256, 1], [65536]]


def test_four_choices_of_one_token_are_one_sequence_with_four_targets() -> None:
    plan = plan_prefix_tree([Request([7, 8, 9], [choice]) for choice in range(4)], ROOMY)
    assert len(plan.sequences) == 1 and plan.n_tokens == 3
    assert plan.targets.sequence.tolist() == [0] * 4 and plan.targets.depth.tolist() == [2] * 4


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request([], []), "0 targets for 0 tokens"), (Request([1, 2], []), "0 targets"),
        (Request([1], [2, 3]), "2 targets for 1 tokens"), (Request(list(range(5000)), [1]), "more than the 4096 cells"),
    ],
)
def test_a_request_that_has_nothing_to_score_or_does_not_fit_is_refused(request_: Request, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plan_prefix_tree([Request([1], [1]), request_], ROOMY)


def test_no_requests_are_an_empty_plan() -> None:
    plan = plan_prefix_tree([], ROOMY)
    assert plan.n_tokens == 0 and not plan.groups and plan.targets.offsets.tolist() == [0]
