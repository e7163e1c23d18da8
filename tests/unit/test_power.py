"""The smallest difference that a suite can see, before it runs: its power by simulation, and what it assumes."""

from __future__ import annotations

import numpy as np
import pytest

from eval.analysis.statistics import mcnemar_p
from quantyard.metrics.power import POWER, smallest_difference
from quantyard.plan.power import FLIP_PRIOR, TASK_QUESTIONS, planned_powers
from quantyard.plan.steps import Measuring
from quantyard.plan.suites import SUITES_DIR, find_suite
from quantyard.protocol.evaluation import TaskEntry
from quantyard.quants.catalog import FAMILIES
from tests.evaluations import LARGE
from tests.manifests import manifest_of


@pytest.mark.parametrize(
    ("n", "flips", "n_comparisons"),
    [(160, 0.08, 4), (200, 0.2, 16), (2000, 0.08, 1), (2000, 0.3, 60), (32, 0.1, 8)]
    + [
        pytest.param(n, flips, m, marks=pytest.mark.slow)
        for n in (50, 200, 1000, 10_000) for flips in (0.02, 0.08, 0.3) for m in (1, 8, 60)
    ],
)  # fmt: skip
def test_a_difference_that_a_suite_can_see_is_found_80_times_in_100(n: int, flips: float, n_comparisons: int) -> None:
    delta = smallest_difference(n, flips, n_comparisons)
    if delta is None:
        assert n * 1.0 < 30, "only of very few questions not even the loss of all is seen"
        return
    rng, found, tries, share = np.random.default_rng(n), 0, 1000, max(flips, delta)
    for _ in range(tries):
        lost, gained, _ = rng.multinomial(n, [(share + delta) / 2, (share - delta) / 2, 1 - share])
        found += mcnemar_p(lost, gained) <= 0.05 / n_comparisons
    assert found / tries >= POWER - 0.04  # 3 standard errors of 1,000 tries
    smaller = smallest_difference(4 * n, flips, n_comparisons)
    assert smaller is not None and smaller < delta, "more questions see more"


def test_by_hand() -> None:
    # n = 2,000, f = 0.08, d = 0.0182: 36.4 >= 1.96 * sqrt(160) + 0.8416 * sqrt(2000 * (0.08 - 0.00033)) + 1 = 36.4
    assert smallest_difference(2000, 0.08) == pytest.approx(0.0182, abs=5e-5)
    assert smallest_difference(4, 0.08, 20) is None and smallest_difference(0, 0.1) is None


def test_the_prior_grows_as_bits_get_fewer_and_knows_every_family() -> None:
    assert tuple(FLIP_PRIOR) == FAMILIES
    assert list(FLIP_PRIOR.values()) == sorted(FLIP_PRIOR.values())


def test_what_comes_with_quantyard_has_as_many_questions_as_the_table_says() -> None:
    for task, name in (("smoke_questions", "questions.jsonl"), ("smoke_generation", "completions.jsonl")):
        lines = (SUITES_DIR / "smoke" / name).read_text().splitlines()
        assert TASK_QUESTIONS[task] == (sum(bool(line.strip()) for line in lines), 1)


def test_without_a_measurement_the_familys_usual_flips_are_assumed() -> None:
    suite = find_suite("quick").suite
    found = planned_powers(Measuring(suite, "BF16", ("BF16", "Q8_0", "Q4_K_M")), None)
    assert len(found) == 8 and {power.n_questions for power in found} == {200}
    assert {power.n_comparisons for power in found} == {16}, "two metrics of each task and file"
    eight, four = found[0], found[1]
    assert (eight.quant, eight.flip_share, eight.flip_reason) == ("Q8_0", 0.023, "usual of 8-bit files")
    assert eight.difference is not None and four.difference is not None and eight.difference <= four.difference


def test_what_was_measured_of_the_model_counts_for_more_than_the_prior() -> None:
    manifest = manifest_of(LARGE)
    report = manifest.evaluations["standard"]
    label = report.measurements[1].file.label
    measuring = Measuring(report.suite, report.baseline, (report.baseline, label))
    power = planned_powers(measuring, manifest)[0]
    assert "answers flipped before in" in power.flip_reason
    assert power.n_questions and power.difference is not None


def test_the_questions_of_an_unknown_task_are_not_guessed() -> None:
    suite = find_suite("quick").suite.model_copy(update={"tasks": (TaskEntry(task="my_task"),)})
    (power,) = planned_powers(Measuring(suite, "BF16", ("BF16", "Q8_0")), None)
    assert power.n_questions is None and power.difference is None
    limited = suite.model_copy(update={"tasks": (TaskEntry(task="my_task", limit=100),)})
    assert planned_powers(Measuring(limited, "BF16", ("BF16", "Q8_0")), None)[0].n_questions == 100
