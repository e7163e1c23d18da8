"""What a file lost and what the backend added: how it is computed, compared, told and judged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.analysis.kl_divergence import divergence_parts, perplexity_parts
from eval.rendering.markdown import render_report_markdown
from quantyard.metrics.divergence_parts import (
    divergence_parts_notes,
    divergence_parts_sentence,
    perplexity_parts_sentence,
)
from quantyard.metrics.pareto import pareto_entries, pareto_metric
from quantyard.metrics.plots.panels import plotted_files
from quantyard.metrics.plots.tradeoff import plot_tradeoffs
from quantyard.protocol.divergence_results import Divergence, DivergencePartsMissing
from quantyard.protocol.measurements import EvalReport, Measurement
from tests.evaluations import LARGE, simulated


def _parts_of(seed: int, own: float, added: float) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    of_file = rng.gamma(1.0, own, 510)
    parts = divergence_parts(of_file, of_file + rng.normal(added, added / 4, 510), 2)
    return {"parts": parts, "backend": "llama.cpp of llama-cpp-python 1.2.3 on the CPU"}


def _with_divergence(report: EvalReport, label: str, **fields: object) -> EvalReport:
    def changed(m: Measurement) -> Measurement:
        if m.file.label != label or m.divergence is None:
            return m
        return m.model_copy(update={"divergence": m.divergence.model_copy(update=fields)})

    return report.model_copy(update={"measurements": tuple(changed(m) for m in report.measurements)})


@pytest.fixture
def report() -> EvalReport:
    return simulated(LARGE[:3], title="Lagoon", n_params=1.1e9, n_tasks=2)


def test_the_two_parts_add_up_to_the_whole() -> None:
    whole, own = np.array([4.0, 6.0, 5.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])
    found = divergence_parts(own, whole, 2)
    assert (found.n_tokens, found.whole.value, found.of_file.value, found.of_backend.value) == (4, 6.0, 2.5, 3.5)
    assert len(found.of_file.clusters) == 4 and not found.whole.clusters


def test_the_parts_of_a_change_of_perplexity_multiply_to_the_whole(report: EvalReport) -> None:
    whole, own = np.log([1.1, 1.3, 1.2, 1.2]), np.log([1.0, 1.2, 1.1, 1.1])
    found = perplexity_parts(own, whole, 2)
    factors = [math.exp(part.value) for part in (found.whole, found.of_file, found.of_backend)]
    assert factors[0] == pytest.approx((1.1 * 1.3 * 1.2 * 1.2) ** 0.25) == pytest.approx(factors[1] * factors[2])
    parts = divergence_parts(own, whole, 2, found)
    said = perplexity_parts_sentence(parts)
    assert said.startswith("of ΔPPL +19.8 %") and "over 4 tokens the file lost +9.77 %" in said
    label = report.measurements[1].file.label
    text = render_report_markdown(_with_divergence(report, label, parts=parts, backend="llama.cpp"))
    assert f"{label}: {said}." in text
    assert perplexity_parts_sentence(divergence_parts(own, whole, 2)) == ""  # of an earlier version


def test_files_are_compared_by_what_they_lost_only_if_that_is_known_of_all(report: EvalReport) -> None:
    first, second = (m.file.label for m in report.measurements[1:])
    one = _with_divergence(report, first, **_parts_of(1, 0.03, 0.002))
    assert pareto_metric(report) == pareto_metric(one) == "mean KLD"
    both = _with_divergence(one, second, **_parts_of(2, 0.001, 0.002))
    assert pareto_metric(both) == "KLD of the file"
    lost = {entry.label: entry.loss for entry in pareto_entries(both)}
    assert lost[first] == pytest.approx(0.03, rel=0.2) and lost[second] == pytest.approx(0.001, rel=0.2)


def test_the_report_shows_both_parts_and_names_the_build(report: EvalReport) -> None:
    label = report.measurements[1].file.label
    text = render_report_markdown(_with_divergence(report, label, **_parts_of(1, 0.03, 0.002)))
    assert "| lost by the file | added by this backend |" in text
    assert "llama.cpp of llama-cpp-python 1.2.3 on the CPU" in text and "limits judge the whole" in text
    assert "lost by the file" not in render_report_markdown(report)


def test_why_the_parts_are_not_known_is_said_with_a_name_for_programs(report: EvalReport) -> None:
    label = report.measurements[1].file.label
    said = "a float32 copy needs 32 GiB of memory; 16 GiB are free"
    missing = DivergencePartsMissing(reason="TOO_LARGE", finding=said)
    notes = list(divergence_parts_notes(_with_divergence(report, label, parts_missing=missing).measurements))
    assert notes == [f"{label}: what the file lost by itself is not known (TOO_LARGE): {missing.finding}."]


def test_a_sentence_says_what_was_lost_where(report: EvalReport) -> None:
    found = Divergence.model_validate({
        **report.measurements[1].divergence.model_dump(), **_parts_of(1, 0.001, 0.0023),  # type: ignore[union-attr]
    })  # fmt: skip
    assert found.parts is not None
    said = divergence_parts_sentence(found.parts)
    assert said.startswith("of 0.003") and "over 510 tokens the file lost 0.00" in said
    assert said.endswith("and this backend added +0.0023")


def test_the_picture_shows_what_the_front_compares(report: EvalReport) -> None:
    assert "KLD of the file" not in str(plot_tradeoffs(plotted_files(report))[0])
    for number, m in enumerate(report.measurements[1:], 1):
        report = _with_divergence(report, m.file.label, **_parts_of(number, 0.01 / number, 0.002))
    assert "KLD of the file" in str(plot_tradeoffs(plotted_files(report))[0])
