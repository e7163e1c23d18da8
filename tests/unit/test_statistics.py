"""The statistics: published examples, brute force, symmetry, and coverage by simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.analysis.statistics import (
    Z,
    bits_change,
    bits_interval,
    design_effect,
    mcnemar_p,
    mean_interval,
    paired_means_interval,
    paired_proportions_interval,
    perplexity_change,
    perplexity_interval,
    proportion_interval,
)
from quantyard.metrics.intervals import t_quantile, wilson_interval
from quantyard.protocol.estimates import Interval

flips = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400)).filter(lambda t: sum(t) > 0)


# ---- published examples ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombes_table(right: int, n: int, low: float, high: float) -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
    interval = wilson_interval(right, n)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(
    ("lost", "gained", "n", "low", "high"),
    [
        # Fagerland, Lydersen, Laake 2014 / Statistical Analysis of Contingency Tables (2017), ch. 8, the table of Tango
        # intervals: airway hyper-responsiveness (Bentur 2009), complete response (Cavo 2012).
        (7, 1, 21, -0.517, -0.026),
        (16, 6, 161, -0.1240, -0.0054),
    ],
)
def test_tangos_interval_is_that_of_the_published_examples(
    lost: int, gained: int, n: int, low: float, high: float
) -> None:
    interval = paired_proportions_interval(lost, gained, n)
    digits = 5e-4 if n == 21 else 5e-5
    assert (interval.low, interval.high) == (pytest.approx(low, abs=digits), pytest.approx(high, abs=digits))


def test_tangos_interval_at_90_per_cent_is_what_the_r_package_propcis_gives() -> None:
    interval = paired_proportions_interval(25, 28, 618, z=1.6448536269514722)
    assert (interval.low, interval.high) == (pytest.approx(-0.0148, abs=5e-5), pytest.approx(0.0247, abs=5e-5))


@pytest.mark.parametrize(("lost", "gained", "p"), [(16, 6, 0.052479), (7, 1, 0.0703125), (0, 0, 1.0), (5, 0, 0.0625)])
def test_mcnemars_exact_test_is_that_of_the_published_examples(lost: int, gained: int, p: float) -> None:
    assert mcnemar_p(lost, gained) == pytest.approx(p, abs=5e-7)


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (120, 1.980)]
)
def test_students_t_is_that_of_the_tables(df: int, t: float) -> None:
    assert t_quantile(df) == pytest.approx(t, abs=5e-4)


# ---- brute force and definitions ---------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemars_test_counts_every_outcome_of_the_coin(lost: int, gained: int) -> None:
    m, fewer = lost + gained, min(lost, gained)
    tail = sum(Fraction(math.comb(m, k), 2**m) for k in range(fewer + 1))
    assert mcnemar_p(lost, gained) == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


def test_mcnemars_test_stays_exact_for_many_flips() -> None:
    tail = sum(Fraction(math.comb(3000, k), 2**3000) for k in range(1421))
    assert mcnemar_p(1580, 1420) == pytest.approx(float(2 * tail), rel=1e-9)


@pytest.mark.commands
@settings(max_examples=40)
@given(flips)
def test_tangos_interval_holds_the_hypotheses_its_statistic_does_not_reject(counts: tuple[int, int, int]) -> None:
    lost, gained, same = counts
    n = lost + gained + same
    interval = paired_proportions_interval(lost, gained, n)
    for end, lowest in ((interval.low, -1.0), (interval.high, 1.0)):
        if abs(end - lowest) > 1e-6:
            assert abs(_tango_by_likelihood(lost, gained, n, end)) == pytest.approx(Z, rel=2e-3)


def _tango_by_likelihood(lost: int, gained: int, n: int, d: float) -> float:
    """The score statistic with the share of lost questions found by trying them all."""
    low, high = max(0.0, -d), (1 - d) / 2
    q = np.linspace(low + 1e-12, high - 1e-12, 400_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = n - lost - gained
        log = sum(k * np.log(p) for k, p in ((lost, q), (gained, q + d), (rest, 1 - 2 * q - d)) if k)
    best = float(q[np.argmax(log)]) if lost + gained + rest else low
    return float((gained - lost - n * d) / math.sqrt(n * (2 * best + d - d * d)))


@given(flips)
def test_lost_and_gained_mirror_each_other(counts: tuple[int, int, int]) -> None:
    lost, gained, _ = counts
    one = paired_proportions_interval(lost, gained, sum(counts))
    two = paired_proportions_interval(gained, lost, sum(counts))
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low), abs=1e-9)
    assert mcnemar_p(lost, gained) == mcnemar_p(gained, lost)


@given(flips)
def test_an_interval_of_proportions_lies_in_its_range_around_its_value(counts: tuple[int, int, int]) -> None:
    lost, gained, _ = counts
    difference = paired_proportions_interval(lost, gained, sum(counts))
    assert -1 <= difference.low <= difference.value <= difference.high <= 1
    share = wilson_interval(lost, sum(counts))
    assert 0 <= share.low <= share.value <= share.high <= 1


def test_no_flip_among_few_questions_proves_little() -> None:
    interval = paired_proportions_interval(0, 0, 20)
    assert (interval.low, interval.high) == (pytest.approx(-0.1611, abs=1e-4), pytest.approx(0.1611, abs=1e-4))


def test_the_interval_of_a_mean_is_students() -> None:
    interval = mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert interval.high - 3 == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert 3 - interval.low == pytest.approx(interval.high - 3)


def test_a_mean_of_one_value_has_no_width() -> None:
    assert mean_interval(np.array([0.4])) == Interval(value=0.4, low=0.4, high=0.4)


def test_differences_that_are_all_alike_are_not_taken_for_certain() -> None:
    same = paired_means_interval(np.array([0.2, 0.5, 0.9]), np.array([0.2, 0.5, 0.9]))
    wide = paired_means_interval(np.array([10.0, 30.0]), np.array([10.0, 30.0]))
    assert same.high == -same.low == pytest.approx(Z * Z / (3 + Z * Z))
    assert wide.high == pytest.approx(20 * Z * Z / (2 + Z * Z))


# ---- perplexities ------------------------------------------------------------------------------------


def _documents(rng: np.random.Generator, n: int, change: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loglikelihoods on two files and words, for documents of very different length."""
    words = rng.integers(20, 800, n).astype(float)
    base = -words * rng.normal(3.0, 0.4, n)
    return base, base - words * rng.normal(change, 0.05, n), words


def test_a_perplexity_is_that_of_all_documents_together() -> None:
    base, _, words = _documents(np.random.default_rng(1), 50, 0.0)
    interval = perplexity_interval(base, words)
    assert interval.value == pytest.approx(math.exp(-base.sum() / words.sum()))
    assert 1 < interval.low < interval.value < interval.high


def test_the_change_of_a_perplexity_is_the_ratio_of_both() -> None:
    base, other, words = _documents(np.random.default_rng(2), 50, 0.02)
    ratio = perplexity_interval(other, words).value / perplexity_interval(base, words).value
    assert perplexity_change(base, other, words).value == pytest.approx(ratio - 1)


def test_the_change_of_bits_per_byte_is_the_ratio_of_both() -> None:
    base, other, sizes = _documents(np.random.default_rng(3), 50, 0.02)
    ratio = bits_interval(other, sizes).value / bits_interval(base, sizes).value
    assert bits_change(base, other).value == pytest.approx(ratio - 1)
    assert bits_interval(base, sizes).value == pytest.approx(-base.sum() / sizes.sum() / math.log(2))


def test_a_paired_change_is_far_sharper_than_two_intervals() -> None:
    base, other, words = _documents(np.random.default_rng(4), 60, 0.02)
    change, alone = perplexity_change(base, other, words), perplexity_interval(base, words)
    assert (change.high - change.low) < 0.2 * (alone.high - alone.low) / alone.value


@pytest.mark.parametrize("change", [0.02, 0.8])
def test_the_delta_methods_error_is_that_of_the_bootstrap(change: float) -> None:
    rng = np.random.default_rng(5)
    base, other, words = _documents(rng, 80, change)
    picks = rng.integers(0, 80, (4000, 80))
    logs = (base - other)[picks].sum(axis=1) / words[picks].sum(axis=1)
    interval = perplexity_change(base, other, words)
    width = math.log1p(interval.high) - math.log1p(interval.low)
    assert width == pytest.approx(2 * t_quantile(79) * float(logs.std()), rel=0.06)


def test_wildly_different_documents_still_give_finite_numbers() -> None:
    interval = perplexity_interval(np.array([-1.0, -90_000.0]), np.array([1.0, 1.0]))
    assert math.isfinite(interval.high)


# ---- coverage ----------------------------------------------------------------------------------------


@pytest.mark.commands
@pytest.mark.parametrize(
    ("lose", "gain", "n"), [(0.02, 0.02, 100), (0.05, 0.02, 100), (0.12, 0.06, 400), (0.2, 0.2, 40)]
)
def test_tangos_interval_covers_the_true_difference_95_times_in_100(lose: float, gain: float, n: int) -> None:
    draws = np.random.default_rng(11).multinomial(n, [lose, gain, 1 - lose - gain], size=1500)
    hits = [
        interval.low <= gain - lose <= interval.high
        for lost, gained, _ in draws.tolist()
        for interval in [paired_proportions_interval(lost, gained, n)]
    ]
    assert 0.925 <= np.mean(hits) <= 0.99


@pytest.mark.commands
def test_the_interval_of_a_perplexitys_change_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(12)
    hits = []
    for _ in range(1000):
        interval = perplexity_change(*_documents(rng, 40, 0.02))
        hits.append(interval.low <= math.expm1(0.02) <= interval.high)
    assert 0.925 <= np.mean(hits) <= 0.97


def test_the_interval_of_paired_means_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(13)
    base = rng.random((1000, 30))
    other = base + rng.normal(-0.01, 0.04, base.shape)
    pairs = (paired_means_interval(one, two) for one, two in zip(base, other, strict=True))
    assert 0.93 <= np.mean([interval.low <= -0.01 <= interval.high for interval in pairs]) <= 0.97


def test_two_equal_files_are_called_different_less_than_5_times_in_100() -> None:
    draws = np.random.default_rng(14).multinomial(200, [0.04, 0.04, 0.92], size=1500).tolist()
    different = [
        mcnemar_p(lost, gained) < 0.05 and not (interval.low <= 0 <= interval.high)
        for lost, gained, _ in draws
        for interval in [paired_proportions_interval(lost, gained, 200)]
    ]
    assert 0 < np.mean(different) < 0.05


# ---- documents of unequal length, questions in groups ------------------------------------------------


@pytest.mark.commands
@pytest.mark.parametrize(("n", "spread"), [(6, 1.0), (12, 1.5), (30, 1.0), (60, 1.5)])
def test_the_interval_of_a_perplexity_holds_over_documents_of_unequal_length(n: int, spread: float) -> None:
    rng, hits = np.random.default_rng(n), []
    for _ in range(600):
        words = np.exp(rng.normal(6, spread, n))
        interval = perplexity_interval(-words * rng.normal(3.0, 0.6, n), words)
        hits.append(interval.low <= math.exp(3) <= interval.high)
    assert 0.925 <= np.mean(hits) <= 0.985


def test_the_interval_of_two_documents_is_the_hand_calculation() -> None:
    """Documents of 1 and 3 bytes have 2 and 4 nats a byte; leaving one out gives 4 and 2; df is 16 / 10 - 1, so 1."""
    interval = bits_interval(np.array([-2.0, -12.0]), np.array([1.0, 3.0]))
    nats, stderr = 14 / 4, math.sqrt(1 / 2 * (1 + 1))
    assert interval.value == pytest.approx(nats / math.log(2))
    assert interval.high == pytest.approx((nats + t_quantile(1) * stderr) / math.log(2))


def _in_groups(rng: np.random.Generator, n_groups: int, rate: float) -> tuple[np.ndarray, list[int]]:
    """Right and wrong answers to 1 to 9 questions about each of some passages, which are easy or hard as a whole."""
    groups = [which for which in range(n_groups) for _ in range(int(rng.integers(1, 10)))]
    easy = np.clip(rng.normal(rate, 0.3, n_groups), 0, 1)[groups]
    return (rng.random(len(groups)) < easy).astype(float), groups


@pytest.mark.commands
@pytest.mark.parametrize("n_groups", [12, 40])
def test_the_interval_of_an_accuracy_holds_where_questions_come_in_groups(n_groups: int) -> None:
    rng, grouped, alone = np.random.default_rng(n_groups), [], []
    truth = np.clip(rng.normal(0.6, 0.3, 400_000), 0, 1).mean()
    for _ in range(500):
        right, groups = _in_groups(rng, n_groups, 0.6)
        for hits, interval in ((grouped, proportion_interval(right, groups)), (alone, proportion_interval(right))):
            hits.append(interval.low <= truth <= interval.high)
    assert np.mean(alone) < 0.88
    assert 0.925 <= np.mean(grouped) <= 0.985


def test_questions_in_groups_of_one_are_independent() -> None:
    right = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 40)
    assert proportion_interval(right, list(range(240))).low == pytest.approx(proportion_interval(right).low, abs=5e-4)
    assert design_effect(right, None) == 1


def test_the_same_question_asked_four_times_counts_once() -> None:
    right = np.repeat(np.random.default_rng(5).integers(0, 2, 200).astype(float), 4)
    effect = design_effect(right, [i // 4 for i in range(800)])
    assert effect == pytest.approx(4, rel=0.05)
