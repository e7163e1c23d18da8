"""The noise of the packing: pooled over tasks, shown on report and card, and counted by verdicts (by simulation)."""

from __future__ import annotations

import numpy as np
import pytest

from eval.analysis.statistics import mcnemar_p, paired_proportions_interval
from eval.rendering.markdown import render_report_markdown
from quantyard.metrics.layout_figures import layout_rows, pooled_layout_noise
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.task_results import LayoutNoise
from tests.evaluations import LARGE, simulated

_ONE = LayoutNoise(n_questions=8, n_requests=32, sd_nats=0.03, flips=1)
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


def test_the_report_shows_the_noise_and_how_it_counts(report: EvalReport) -> None:
    text = render_report_markdown(report)
    assert "## Layout noise" in text and "| 8 | 0.030 | 1: 12.5 % (2.2 % to 47.1 %) |" in text
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
