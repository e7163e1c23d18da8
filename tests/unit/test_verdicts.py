"""Verdicts of a whole report: their error rates by simulation, Holm's correction, and how many questions would do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from eval.analysis.paired import PairedDifference, paired_differences
from eval.analysis.verdicts import compare_evaluations, questions_needed
from quantyard.metrics.holm import holm_adjusted
from quantyard.protocol.task_results import Evaluation
from tests.evaluations import evaluation, metric, outcome, right_or_wrong

Bits = np.ndarray


def test_holms_p_values_are_those_of_his_example_by_hand() -> None:
    # 4 x 0.01; max(0.04, 3 x 0.02); max(0.06, 2 x 0.03); max(0.06, 1 x 0.04)
    assert holm_adjusted([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_adjusted([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjusted([]) == []


# ---- simulated files ---------------------------------------------------------------------------------


def _flip(rng: np.random.Generator, right: Bits, lose: float, gain: float) -> Bits:
    draw = rng.random(len(right))
    return np.where(right == 1, draw >= lose, draw < gain).astype(float)


def _balanced(rng: np.random.Generator, right: Bits, share: float) -> Bits:
    """A file that is as good as the baseline and answers this share of all questions otherwise."""
    skill = 0.6
    return _flip(rng, right, share / 2 / skill, share / 2 / (1 - skill))


def _file(label: str, tasks: Sequence[Bits]) -> Evaluation:
    return evaluation(label, *(outcome(f"t{i}", right_or_wrong(bits.tolist())) for i, bits in enumerate(tasks)))


def _differences(
    rng: np.random.Generator, n_tasks: int, n_files: int, n: int, share: float
) -> list[PairedDifference]:
    base = [(rng.random(n) < 0.6).astype(float) for _ in range(n_tasks)]
    others = [_file(f"Q{i}", [_balanced(rng, bits, share) for bits in base]) for i in range(n_files)]
    return [d for other in others for d in paired_differences(_file("BF16", base), other, 0.01)]


@pytest.mark.commands
def test_a_report_of_24_comparisons_seldom_holds_a_false_verdict() -> None:
    rng, false, uncorrected = np.random.default_rng(21), 0, 0
    for _ in range(150):
        found = _differences(rng, 4, 6, 400, 0.12)
        adjusted = holm_adjusted([d.p for d in found])
        false += any(p < 0.05 and not d.delta.low <= 0 <= d.delta.high for p, d in zip(adjusted, found, strict=True))
        uncorrected += any(d.p < 0.05 for d in found)
    assert uncorrected / 150 > 0.3
    assert false / 150 <= 0.05


def test_a_file_that_is_worse_is_still_found_among_24_comparisons() -> None:
    rng = np.random.default_rng(22)
    base = [(rng.random(500) < 0.6).astype(float) for _ in range(4)]
    broken = _file("Q2_K", [_flip(rng, bits, 0.25, 0.1) for bits in base])
    good = [_file(f"Q{i}", [_balanced(rng, bits, 0.05) for bits in base]) for i in range(5)]
    *_, last = compare_evaluations(_file("BF16", base), [*good, broken], 0.01)
    assert [c.verdict for c in last] == ["worse"] * 4


def test_a_single_comparison_is_not_corrected() -> None:
    first, second = [1] * 100 + [0] * 61, [0] * 20 + [1] * 80 + [1] * 6 + [0] * 55
    one, two = (evaluation("a", outcome("arc", right_or_wrong(bits))) for bits in (first, second))
    ((c,),) = compare_evaluations(one, [two], 0.01)
    assert c.adjusted_p == c.mcnemar_p
    assert c.verdict == "worse"
    many = compare_evaluations(one, [two, *[one] * 9], 0.01)
    assert many[0][0].adjusted_p == pytest.approx(10 * (c.mcnemar_p or 0))
    assert many[0][0].verdict == "too few questions"


def test_a_task_without_signal_counts_for_nothing() -> None:
    guess, good = [1, 0, 0, 0] * 50, [1] * 150 + [0] * 50
    one = evaluation("a", outcome("g", right_or_wrong(guess), chance=0.25), outcome("h", right_or_wrong(good)))
    two = evaluation("b", outcome("g", right_or_wrong(guess), chance=0.25), outcome("h", right_or_wrong(good[::-1])))
    ((no_signal, other),) = compare_evaluations(one, [two], 0.01)
    assert (no_signal.verdict, no_signal.adjusted_p) == ("no signal", None)
    assert other.adjusted_p == other.mcnemar_p


def test_questions_about_one_passage_count_as_what_they_are_worth() -> None:
    """40 passages of 5 questions each, of which a file loses 8 whole: 8 flips in truth, not 40."""
    first = [1.0] * 200
    second = [0.0] * 40 + [1.0] * 160
    groups = tuple(i // 5 for i in range(200))
    alone = [outcome("race", right_or_wrong(bits)) for bits in (first, second)]
    grouped = [o.model_copy(update={"groups": groups}) for o in alone]
    ((a,),), ((b,),) = (
        compare_evaluations(evaluation("x", one), [evaluation("y", two)], 0.01) for one, two in (alone, grouped)
    )
    assert a.mcnemar_p is not None and b.mcnemar_p is not None
    assert a.mcnemar_p < 1e-10
    assert 1e-3 < b.mcnemar_p < 0.05
    assert b.delta.high - b.delta.low > 1.8 * (a.delta.high - a.delta.low)


# ---- how many questions would do ---------------------------------------------------------------------


@pytest.mark.commands
@pytest.mark.parametrize(("lose", "gain"), [(0.05, 0.075), (0.20, 0.075), (0.15, 0.05)])
def test_the_questions_that_are_said_to_do_settle_it_four_times_in_five(lose: float, gain: float) -> None:
    """Of files as good as the baseline, somewhat worse, and worse: lose 0.05 of 60 % is gain 0.075 of 40 %."""
    rng, settled = np.random.default_rng(23), []
    for _ in range(120):
        base = (rng.random(150) < 0.6).astype(float)
        (found,) = paired_differences(_file("a", [base]), _file("b", [_flip(rng, base, lose, gain)]), 0.02)
        if found.delta.high < 0 and found.p < 0.05:
            continue  # no question is open
        n = questions_needed(found, 1)
        more = (rng.random(n) < 0.6).astype(float)
        ((again,),) = compare_evaluations(_file("a", [more]), [_file("b", [_flip(rng, more, lose, gain)])], 0.02)
        settled.append(again.verdict != "too few questions")
    assert len(settled) > 20
    assert np.mean(settled) >= 0.75


def test_more_comparisons_need_more_questions() -> None:
    first, second = [1] * 100 + [0] * 61, [0] * 12 + [1] * 88 + [1] * 6 + [0] * 55
    (found,) = paired_differences(*(evaluation("a", outcome("arc", right_or_wrong(b))) for b in (first, second)), 0.01)
    assert 161 < questions_needed(found, 1) < questions_needed(found, 24)


def test_without_a_flip_some_hundreds_of_questions_show_that_two_files_are_within_one_per_cent() -> None:
    (found,) = paired_differences(*[evaluation("a", outcome("arc", right_or_wrong([1] * 100)))] * 2, 0.01)
    assert 381 <= questions_needed(found, 1) < 4000


def test_a_mean_needs_four_times_the_questions_for_half_the_margin() -> None:
    rng = np.random.default_rng(24)
    base = rng.random(100)
    values = base + rng.normal(0, 0.05, 100)
    values += (base - values).mean()
    pair = [evaluation("a", outcome("t", metric("f", v.tolist()))) for v in (base, values)]
    wide, narrow = (questions_needed(paired_differences(pair[0], pair[1], margin)[0], 1) for margin in (0.004, 0.002))
    assert 3 < narrow / wide < 5
