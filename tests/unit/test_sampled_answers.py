"""Sampled answers: hand calculations of the two variances, and coverage and error rates by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.analysis.sampled_answers import sampled_answer_seed, sampled_answers_difference, sampled_answers_mean
from quantyard.metrics.intervals import t_quantile, wilson_interval


def test_the_two_variances_are_those_of_a_hand_calculation() -> None:
    # Means 3, 6, 9: variance 9. Within: 2, 8, 2, so 4 on the average. Questions: 9 - 4 / 2 = 7.
    found = sampled_answers_mean(np.array([[2.0, 4.0], [4.0, 8.0], [8.0, 10.0]]))
    assert (found.n_questions, found.n_seeds) == (3, 2)
    assert (found.question_variance, found.seed_variance) == (pytest.approx(7), pytest.approx(4))
    assert found.question_stderr == pytest.approx(math.sqrt(7 / 3))
    assert found.seed_stderr == pytest.approx(math.sqrt(2 / 3))
    half = t_quantile(2) * math.sqrt(9 / 3)
    assert (found.result.value, found.result.high - 6) == (pytest.approx(6), pytest.approx(half))


def test_a_difference_is_that_of_the_questions_means() -> None:
    # Differences of means 1, 3, 2: variance 1. Within: 2 and 0 (one file never changes its answer), 2 seeds and 3.
    one = np.array([[2.0, 4.0], [4.0, 6.0], [8.0, 10.0]])
    two = np.array([[4.0] * 3, [8.0] * 3, [11.0] * 3])
    found = sampled_answers_difference(one, two)
    assert (found.result.value, found.n_seeds) == (pytest.approx(2), 2)
    assert (found.question_variance, found.seed_variance) == (0.0, pytest.approx(2))  # 1 - 2 / 2
    # |t| = 2 / sqrt(1 / 3) = 3.4641 of 2 degrees of freedom: p = 1 - t / sqrt(t² + 2) = 0.0742.
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_one_answer_to_each_question_leaves_the_variance_of_seeds_open() -> None:
    found = sampled_answers_mean(np.array([[1.0], [0.0], [1.0], [1.0]]))
    assert (found.seed_variance, found.seed_stderr) == (None, None)
    assert found.result.value == 0.75


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_answers_that_are_all_alike_prove_as_much_as_their_questions(right: float) -> None:
    assert sampled_answers_mean(np.full((20, 5), right)).result == wilson_interval(20 * right, 20)
    passages = [i // 2 for i in range(20)]
    assert sampled_answers_mean(np.full((20, 5), right), passages).result == wilson_interval(10 * right, 10)


def test_more_seeds_shrink_their_own_part_alone() -> None:
    rng = np.random.default_rng(1)
    skill = rng.beta(1, 1, 2000)
    few, many = (sampled_answers_mean((rng.random((2000, n)) < skill[:, None]).astype(float)) for n in (2, 8))
    assert few.question_stderr == pytest.approx(many.question_stderr, rel=0.1)
    assert few.seed_stderr == pytest.approx(2 * many.seed_stderr, rel=0.1)  # type: ignore[operator]
    assert few.question_variance == pytest.approx(1 / 12, rel=0.1)  # of a uniform skill
    assert few.seed_variance == pytest.approx(1 / 6, rel=0.1)  # the mean of p (1 - p)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_answers_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="questions, seeds"):
        sampled_answers_mean(np.ones(shape))


def test_every_answer_has_a_seed_of_its_own_that_depends_on_nothing_else() -> None:
    seeds = {sampled_answer_seed(seed, f"q{q}", s) for seed in (1, 2) for q in range(50) for s in range(5)}
    assert len(seeds) == 500
    assert all(0 <= seed < 0xFFFFFFFF for seed in seeds)  # the last one asks llama.cpp for a random seed
    assert sampled_answer_seed(1234, "q7", 2) == sampled_answer_seed(1234, "q7", 2) == 1862531223


# ---- simulation --------------------------------------------------------------------------------------

# Questions, seeds, and how much the questions differ: a beta distribution of skill with this sum of its parameters.
_LAYOUTS = [(30, 3, 0.5), (60, 5, 2.0), (60, 5, 200.0), (150, 2, 1.0)]
_ALL = [(n, seeds, spread) for n in (20, 60, 200) for seeds in (1, 3, 8) for spread in (0.3, 2.0, 200.0)]
_EACH = pytest.mark.parametrize(
    ("n", "seeds", "spread"), [*_LAYOUTS, *(pytest.param(*layout, marks=pytest.mark.slow) for layout in _ALL)]
)


@pytest.mark.commands
@_EACH
def test_the_interval_of_an_accuracy_over_seeds_covers_the_truth_95_times_in_100(
    n: int, seeds: int, spread: float
) -> None:
    rng, covered, tries = np.random.default_rng(n + seeds), 0, 600
    for _ in range(tries):
        skill = rng.beta(0.7 * spread, 0.3 * spread, n)
        found = sampled_answers_mean((rng.random((n, seeds)) < skill[:, None]).astype(float)).result
        covered += found.low <= 0.7 <= found.high
    assert covered / tries >= 0.93


@pytest.mark.commands
@_EACH
def test_a_difference_between_files_of_equal_skill_is_found_5_times_in_100(n: int, seeds: int, spread: float) -> None:
    """The files share their questions; each answers better on some and worse on others, equally well in all."""
    rng, found, tries = np.random.default_rng(n * seeds), 0, 600
    for _ in range(tries):
        skill = 0.05 + 0.9 * rng.beta(0.7 * spread, 0.3 * spread, n)
        other = skill + rng.choice([-0.05, 0.05], n)
        one, two = ((rng.random((n, seeds)) < of[:, None]).astype(float) for of in (skill, other))
        p = sampled_answers_difference(one, two).p
        found += p is not None and p < 0.05
    assert found / tries <= 0.07
