"""Comparing two evaluations: pairing, kinds of metrics, groups, verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.analysis.columns import evaluation_scores
from eval.analysis.paired import NotComparable
from eval.analysis.verdicts import compare_evaluations
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.protocol.evaluation import Suite, TaskEntry
from quantyard.protocol.measurements import Comparison
from quantyard.protocol.task_results import Evaluation, TaskOutcome
from tests.evaluations import evaluation, metric, outcome, right_or_wrong


def _one(base: TaskOutcome, other: TaskOutcome, margin: float = 0.01) -> Comparison:
    ((comparison,),) = compare_evaluations(evaluation("BF16", base), [evaluation("Q4_K_M", other)], margin)
    return comparison


def _bits(right: int, lost: int, gained: int, n: int) -> tuple[list[int], list[int]]:
    """Answers of both files: `right` of `n` right on the first, of which `lost` are wrong on the second."""
    first = [1] * right + [0] * (n - right)
    second = [0] * lost + [1] * (right - lost) + [1] * gained + [0] * (n - right - gained)
    return first, second


def _flips(right: int, lost: int, gained: int, n: int, chance: float | None = 0.25, margin: float = 0.01) -> Comparison:
    first, second = _bits(right, lost, gained, n)
    one, two = (outcome("arc", right_or_wrong(bits), chance=chance) for bits in (first, second))
    return _one(one, two, margin)


# ---- pairing -----------------------------------------------------------------------------------------


def test_questions_that_differ_are_refused_and_the_task_and_place_named() -> None:
    one = outcome("arc", right_or_wrong([1, 0, 1]), hashes=["a", "b", "c"])
    two = outcome("arc", right_or_wrong([1, 0, 1]), hashes=["a", "x", "c"])
    with pytest.raises(NotComparable, match="arc differ between BF16 and Q4_K_M: the first at position 1, b and x"):
        _one(one, two)


def test_a_different_number_of_questions_is_refused() -> None:
    with pytest.raises(NotComparable, match=r"task arc differ between BF16 and Q4_K_M: 3 and 2 of them"):
        _one(outcome("arc", right_or_wrong([1, 0, 1])), outcome("arc", right_or_wrong([1, 0])))


def test_the_same_questions_in_another_order_are_refused() -> None:
    one = outcome("arc", right_or_wrong([1, 0]), hashes=["a", "b"])
    with pytest.raises(NotComparable, match="position 0"):
        _one(one, outcome("arc", right_or_wrong([1, 0]), hashes=["b", "a"]))


def test_a_task_that_only_one_file_was_asked_is_refused() -> None:
    arc, piqa = outcome("arc", right_or_wrong([1])), outcome("piqa", right_or_wrong([1]))
    with pytest.raises(NotComparable, match=r"Task piqa \(0-shot\) was run on BF16 but not on Q8_0"):
        compare_evaluations(evaluation("BF16", arc, piqa), [evaluation("Q8_0", arc)], 0.01)
    with pytest.raises(NotComparable, match=r"Task piqa \(0-shot\) was run on Q8_0 but not on BF16"):
        compare_evaluations(evaluation("BF16", arc), [evaluation("Q8_0", arc, piqa)], 0.01)


def test_other_shots_and_other_versions_are_other_questions() -> None:
    arc = outcome("arc", right_or_wrong([1, 0]))
    with pytest.raises(NotComparable, match="0-shot"):
        _one(arc, outcome("arc", right_or_wrong([1, 0]), shots=5))
    with pytest.raises(NotComparable, match=r"versions of task arc .* 1\.0 and 2\.0"):
        _one(arc, outcome("arc", right_or_wrong([1, 0]), version="2.0"))


# ---- numbers -----------------------------------------------------------------------------------------


def test_flips_are_counted_each_way() -> None:
    c = _flips(right=60, lost=9, gained=4, n=100)
    assert (c.lost, c.gained, c.n) == (9, 4, 100)
    assert (c.baseline, c.value, c.delta.value) == pytest.approx((0.60, 0.55, -0.05))
    assert c.mcnemar_p == pytest.approx(0.2668, abs=1e-4)


@pytest.mark.commands
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80))
def test_the_other_way_round_every_sign_turns(answers: list[tuple[int, int]]) -> None:
    one, two = (outcome("arc", right_or_wrong(bits)) for bits in zip(*answers, strict=True))
    there, back = _one(one, two), _one(two, one)
    assert (there.lost, there.gained, there.mcnemar_p) == (back.gained, back.lost, back.mcnemar_p)
    assert (there.delta.low, there.delta.high) == pytest.approx((-back.delta.high, -back.delta.low), abs=1e-9)
    opposite = {"worse": "better", "better": "worse"}
    assert there.verdict == opposite.get(back.verdict, back.verdict)


@pytest.mark.commands
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60), st.randoms())
def test_the_order_of_questions_changes_nothing(answers: list[tuple[int, int]], random) -> None:
    shuffled = random.sample(answers, len(answers))
    one, two = (
        _one(*(outcome("arc", right_or_wrong(bits)) for bits in zip(*pairs, strict=True)))
        for pairs in (answers, shuffled)
    )
    assert one == two


def test_real_valued_scores_have_no_flips_and_a_paired_interval() -> None:
    rng = np.random.default_rng(3)
    base = rng.random(200)
    other = base - 0.05 + rng.normal(0, 0.02, 200)
    c = _one(outcome("mc2", metric("acc", base.tolist())), outcome("mc2", metric("acc", other.tolist())))
    assert (c.lost, c.gained, c.mcnemar_p, c.verdict) == (0, 0, None, "worse")
    assert c.delta.high - c.delta.low < 0.01


def test_a_metric_that_is_right_or_wrong_on_one_file_only_is_compared_as_a_mean() -> None:
    c = _one(outcome("t", metric("f", [1.0, 0.0, 1.0])), outcome("t", metric("f", [1.0, 0.5, 1.0])))
    assert c.mcnemar_p is None
    assert c.delta.value == pytest.approx(1 / 6)


def test_a_perplexitys_delta_is_relative_and_more_is_worse() -> None:
    base = [(-3000.0 - 10 * i, 1000.0 + i) for i in range(40)]
    other = [(ll * (1.02 + 0.0002 * (i % 5)), w) for i, (ll, w) in enumerate(base)]
    for name in ("word_perplexity", "bits_per_byte"):
        c = _one(*(outcome("wikitext", metric(name, pairs, higher=False)) for pairs in (base, other)))
        assert c.delta.value == pytest.approx(c.value / c.baseline - 1)
        assert (c.verdict, c.mcnemar_p) == ("worse", None)


def test_lambadas_perplexity_of_single_loglikelihoods_is_a_perplexity_too() -> None:
    lls = [-1.0 - 0.1 * i for i in range(20)]
    worse = [ll - 0.2 - 0.001 * i for i, ll in enumerate(lls)]
    c = _one(*(outcome("lambada", metric("perplexity", values, higher=False)) for values in (lls, worse)))
    assert c.baseline == pytest.approx(math.exp(-np.mean(lls)))
    assert c.delta.value == pytest.approx(math.expm1(0.2095))


def test_a_metric_whose_value_does_not_follow_from_its_questions_has_a_score_and_no_comparison() -> None:
    f1 = metric("f1", [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)], value=0.66, stderr=0.05)
    mcc = metric("mcc", [0.0, 1.0, 1.0], value=0.31)
    both = evaluation("BF16", outcome("cola", f1, mcc))
    assert [(s.metric, s.result.value) for s in evaluation_scores(both)] == [("f1", 0.66), ("mcc", 0.31)]
    assert evaluation_scores(both)[0].result.high == pytest.approx(0.66 + 1.96 * 0.05, abs=1e-4)
    assert compare_evaluations(both, [both], 0.01) == [()]


def test_a_perplexity_of_one_document_is_not_compared_for_it_has_no_interval() -> None:
    one = outcome("wikitext", metric("word_perplexity", [(-30.0, 10.0)], higher=False))
    assert compare_evaluations(evaluation("BF16", one), [evaluation("Q8_0", one)], 0.01) == [()]


def test_filters_are_told_apart_and_standard_errors_left_out() -> None:
    gsm8k = outcome(
        "gsm8k", metric("exact_match", [1.0, 0.0], filter="strict-match"),
        metric("exact_match", [1.0, 1.0], filter="flexible-extract"), metric("exact_match_stderr", [0.5, 0.5]),
    )  # fmt: skip
    assert [s.metric for s in evaluation_scores(evaluation("BF16", gsm8k))] == [
        "exact_match,strict-match", "exact_match,flexible-extract",
    ]  # fmt: skip


# ---- verdicts ----------------------------------------------------------------------------------------


def test_a_baseline_within_noise_of_chance_gives_no_signal_however_large_the_difference() -> None:
    assert _flips(right=130, lost=120, gained=0, n=500, chance=0.25).verdict == "no signal"


def test_a_baseline_below_chance_gives_no_signal() -> None:
    assert _flips(right=50, lost=40, gained=0, n=500, chance=0.25).verdict == "no signal"


def test_without_a_chance_level_a_low_score_is_a_signal() -> None:
    assert _flips(right=130, lost=120, gained=0, n=500, chance=None).verdict == "worse"


def test_many_losses_are_worse_and_many_gains_better() -> None:
    assert _flips(right=300, lost=40, gained=5, n=500).verdict == "worse"
    assert _flips(right=300, lost=5, gained=40, n=500).verdict == "better"


def test_an_interval_that_leaves_out_0_is_no_verdict_where_mcnemar_hesitates() -> None:
    c = _flips(right=90, lost=16, gained=6, n=161)  # Cavo 2012: Tango leaves out 0, p = 0.052
    assert c.delta.high < 0
    assert c.verdict == "too few questions"
    assert c.questions_needed is not None
    assert c.questions_needed > 161


def test_few_flips_among_many_questions_are_the_same_and_among_few_too_few() -> None:
    assert _flips(right=3000, lost=5, gained=5, n=5000).verdict == "same"
    few = _flips(right=60, lost=1, gained=1, n=100)
    assert few.verdict == "too few questions"
    assert few.questions_needed is not None
    assert _flips(right=3000, lost=5, gained=5, n=5000).questions_needed is None


def test_the_margin_decides_what_is_the_same() -> None:
    assert _flips(right=300, lost=5, gained=5, n=500, margin=0.05).verdict == "same"
    assert _flips(right=300, lost=5, gained=5, n=500, margin=0.01).verdict == "too few questions"


def test_a_certain_difference_within_the_margin_counts_as_the_same() -> None:
    c = _flips(right=30_000, lost=200, gained=60, n=50_000)
    assert c.mcnemar_p is not None and c.mcnemar_p < 0.001 and max(-c.delta.low, c.delta.high) < 0.01
    assert c.verdict == "same"
    assert _flips(right=30_000, lost=200, gained=60, n=50_000, margin=0.001).verdict == "worse"


def test_the_margin_of_a_score_that_goes_beyond_1_is_relative() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(40, 5, 300)
    other = base + rng.normal(0, 1, 300)  # half width 0.11: within 1 % of 40, not within 0.01
    c = _one(*(outcome("t", metric("bleu_mean", v.tolist())) for v in (base, other)))
    assert c.verdict == "same"


def test_files_that_answer_alike_are_the_same_only_after_enough_questions() -> None:
    assert _flips(right=240, lost=0, gained=0, n=380).verdict == "too few questions"
    assert _flips(right=240, lost=0, gained=0, n=381).verdict == "same"


# ---- groups and headlines ----------------------------------------------------------------------------


def _group(label: str, lost: int) -> Evaluation:
    parts = []
    for i, name in enumerate(("mmlu_anatomy", "mmlu_law", "mmlu_physics")):
        first, second = _bits(60, lost, 1, 100 + 50 * i)
        bits = first if label == "BF16" else second
        parts.append(outcome(name, right_or_wrong(bits), entry="mmlu", chance=0.25 if i else 0.2))
    return evaluation(label, *parts, outcome("piqa", right_or_wrong([1, 0, 1, 1]), chance=0.5))


def test_a_group_is_compared_over_all_its_questions_under_its_own_name() -> None:
    found = {c.task: c for c in compare_evaluations(_group("BF16", 8), [_group("Q4_K_M", 8)], 0.01)[0]}
    assert list(found) == ["mmlu", "mmlu_anatomy", "mmlu_law", "mmlu_physics", "piqa"]
    assert (found["mmlu"].n, found["mmlu"].lost, found["mmlu"].gained) == (450, 24, 3)
    assert found["mmlu"].baseline == pytest.approx(180 / 450)
    assert found["mmlu"].verdict == "worse"


def test_a_groups_chance_is_that_of_its_questions() -> None:
    mmlu = next(s for s in evaluation_scores(_group("BF16", 8)) if s.task == "mmlu")
    assert mmlu.chance == pytest.approx((100 * 0.2 + 350 * 0.25) / 450)


def test_a_group_has_only_the_metrics_that_all_its_tasks_have() -> None:
    one = outcome("a", right_or_wrong([1, 0]), metric("f", [0.5, 0.2]), entry="g")
    two = outcome("b", right_or_wrong([1, 1]), entry="g")
    assert [(s.task, s.metric) for s in evaluation_scores(evaluation("BF16", one, two)) if s.task == "g"] == [
        ("g", "acc")
    ]


def test_one_task_with_two_numbers_of_shots_is_two_tasks() -> None:
    both = evaluation("BF16", outcome("arc", right_or_wrong([1, 0])), outcome("arc", right_or_wrong([1, 1]), shots=5))
    assert [s.task for s in evaluation_scores(both)] == ["arc (0-shot)", "arc (5-shot)"]
    suite = Suite(name="s", tasks=(TaskEntry(task="arc"), TaskEntry(task="arc", num_fewshot=5)))
    assert [s.task for s in headline_scores(suite, evaluation_scores(both))] == ["arc (0-shot)", "arc (5-shot)"]


def test_headlines_are_one_metric_per_entry_in_the_suites_order() -> None:
    arc = outcome("arc", right_or_wrong([1, 0]), right_or_wrong([1, 1], "acc_norm"))
    found = evaluation_scores(evaluation("BF16", arc, *_group("BF16", 1).outcomes))
    suite = Suite(name="s", tasks=(TaskEntry(task="mmlu"), TaskEntry(task="piqa"), TaskEntry(task="arc")))
    shown = [(s.task, s.metric) for s in headline_scores(suite, found)]
    assert shown == [("mmlu", "acc"), ("piqa", "acc"), ("arc", "acc_norm")]
