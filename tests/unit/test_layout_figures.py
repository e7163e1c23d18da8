"""The noise of the packing: pooled over tasks, shown on report and card, and counted by verdicts (by simulation)."""

from __future__ import annotations

import numpy as np
import pytest

from eval.analysis.statistics import mcnemar_p, paired_proportions_interval
from eval.llama.packing_noise import accuracy_noise, answer_spread, flip_probability, score_sd
from eval.rendering.markdown import render_report_markdown
from quantyard.metrics.layout_figures import layout_rows, layout_sentence, pooled_layout_noise
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.task_results import AccuracyNoise, LayoutNoise
from tests.evaluations import LARGE, simulated

_ACCURACY = AccuracyNoise(n_questions=160, expected_flips=2.0, layout_sd=0.00625, sample_stderr=0.031)
_ONE = LayoutNoise(n_questions=8, n_requests=32, sd_nats=0.03, flips=1, accuracy=_ACCURACY)
_OTHER = LayoutNoise(n_questions=12, n_requests=96, sd_nats=0.01, flips=0)


@pytest.fixture
def report() -> EvalReport:
    found = simulated(LARGE[:3], title="Lagoon", n_params=1.1e9, n_tasks=2)
    noisy = tuple(m.model_copy(update={"layout_noise": _ONE}) for m in found.measurements)
    return found.model_copy(update={"measurements": noisy})


def test_tasks_are_pooled_by_their_requests() -> None:
    # (32 * 0.0009 + 96 * 0.0001) / 128 = 0.0003, the square of 0.01732
    found = pooled_layout_noise([_ONE, None, _OTHER])
    assert found is not None and (found.n_questions, found.n_requests, found.flips) == (20, 128, 1)
    assert found.sd_nats == pytest.approx(0.0173205, abs=1e-7)
    assert pooled_layout_noise([None]) is None


def test_the_spread_of_an_answer_leaves_out_what_all_answers_of_its_question_share() -> None:
    # (1, 2, 3) moves by 2 and by -1, 0, 1 around it; (5, 5) not apart: (1 + 0 + 1 + 0 + 0) / (2 + 1) = 2 / 3
    assert answer_spread([(1.0, 2.0, 3.0), (5.0, 5.0)]) == pytest.approx((2 / 3) ** 0.5)
    assert answer_spread([(0.4,), (0.1,)]) == 0.0, "single continuations have nothing to move against"
    assert score_sd([0.3, -0.1]) == pytest.approx(0.05**0.5 / 2**0.5)  # (0.09 + 0.01) / 2 = 0.05


def test_a_flip_is_as_probable_as_the_normal_law_says_of_the_lead() -> None:
    # the lead moves by a normal error of 0.1 · √2: a lead of 0.1414 is one standard deviation of it, Φ(-1) = 0.158655
    assert flip_probability(0.1 * 2**0.5, 0.1) == pytest.approx(0.158655, abs=1e-6)
    assert flip_probability(0.0, 0.1) == 0.5 and flip_probability(0.3, 0.0) == 0.0


def test_the_accuracy_of_close_questions_moves_with_the_packing() -> None:
    # 4 questions, 3 right: √(3/4 · 1/4 / 3) = 0.25. Two ties flip with 1/2 each, so 1 flip: √(1/2) / 4 = 0.176777
    scores = [(-1.0, -1.0), (-2.0, -9.0, -2.0), (-1.0, -50.0), (-50.0, -1.0)]
    found = accuracy_noise([True, True, True, False], scores, spread=0.1)
    assert found.sample_stderr == pytest.approx(0.25)
    assert found.expected_flips == pytest.approx(1.0) and found.layout_sd == pytest.approx(0.1767767)


def test_the_expected_flips_are_those_of_simulated_packings() -> None:
    rng, n, spread = np.random.default_rng(3), 3000, 0.05
    true = rng.normal(0, 0.5, (n, 4))
    one, two = (true + rng.normal(0, spread / 2**0.5, true.shape) for _ in range(2))
    right = one.argmax(axis=1) == 0
    found = accuracy_noise(right.tolist(), one.tolist(), answer_spread((two - one).tolist()))
    flipped = int((one.argmax(axis=1) != two.argmax(axis=1)).sum())
    assert found.expected_flips == pytest.approx(flipped, abs=4 * flipped**0.5)
    accuracies = [float(((true + rng.normal(0, spread / 2**0.5, true.shape)).argmax(axis=1) == 0).mean())
                  for _ in range(60)]  # fmt: skip
    assert 0.4 * found.layout_sd < np.std(accuracies) < 1.2 * found.layout_sd, "at most, since some flips are of wrong"


def test_accuracies_are_pooled_by_their_questions() -> None:
    # √((160 · 0.00625)² + (40 · 0.025)²) / 200 = √2 / 200; only the one file's share of a task without choices is left
    other = AccuracyNoise(n_questions=40, expected_flips=1.0, layout_sd=0.025, sample_stderr=0.0)
    found = pooled_layout_noise([_ONE, _OTHER, _OTHER.model_copy(update={"accuracy": other})])
    assert found is not None and found.accuracy is not None
    assert (found.accuracy.n_questions, found.accuracy.expected_flips) == (200, 3.0)
    assert found.accuracy.layout_sd == pytest.approx(2**0.5 / 200)
    assert found.accuracy.sample_stderr == pytest.approx(160 * 0.031 / 200)


def test_the_sentence_says_both_uncertainties() -> None:
    assert layout_sentence(_ONE) == (
        "in another packing of its questions a score moves by 0.030 nats and accuracy by 0.62 points, with other "
        "questions by 3.1 points (standard deviations)"
    )
    assert layout_sentence(_OTHER).endswith("moves by 0.010 nats (standard deviation)")
    assert layout_sentence(None) == ""


def test_the_report_shows_the_noise_and_how_it_counts(report: EvalReport) -> None:
    text = render_report_markdown(report)
    assert "## Layout noise" in text
    assert "| 8 | 0.030 | 1: 12.5 % (2.2 % to 47.1 %) | 0.62 points | 3.1 points |" in text
    assert "the intervals and tests of the verdicts count" in text
    bare = report.model_copy(
        update={"measurements": tuple(m.model_copy(update={"layout_noise": None}) for m in report.measurements)}
    )
    assert "Layout noise" not in render_report_markdown(bare) and not list(layout_rows(bare.measurements))


@pytest.mark.parametrize(
    ("n", "loss", "noise"),
    [(200, 0.0, 0.05), (200, 0.04, 0.05), (1000, 0.01, 0.02)]
    + [
        pytest.param(n, loss, noise, marks=pytest.mark.slow)
        for n in (100, 500) for loss in (0.0, 0.02) for noise in (0.01, 0.1)
    ],
)  # fmt: skip
def test_intervals_and_tests_hold_though_each_files_picks_flip_by_the_packing(
    n: int, loss: float, noise: float
) -> None:
    """Each file's answers flip with the probability `noise`, each way, in the one packing that it was asked in."""
    rng, covered, false, tries = np.random.default_rng(n), 0, 0, 400
    truth = -loss * (1 - 2 * noise)
    for _ in range(tries):
        right = rng.random(n) < 0.6
        kept = right & (rng.random(n) >= loss / 0.6)
        one, two = (_repacked(answers, noise, rng) for answers in (right, kept))
        lost, gained = int((one & ~two).sum()), int((~one & two).sum())
        found = paired_proportions_interval(lost, gained, n)
        covered += found.low <= truth <= found.high
        false += loss == 0 and mcnemar_p(lost, gained) < 0.05
    assert covered / tries >= 0.92 and false / tries <= 0.07


def _repacked(answers: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    return answers ^ (rng.random(len(answers)) < noise)
