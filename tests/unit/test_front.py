"""The front: which files no other one beats, in numbers, in words, and the same on report, page and terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from eval.rendering.sentences import render_report_sentences
from quantyard.metrics.pareto import (
    ParetoEntry,
    pareto_beaten_by,
    pareto_beats,
    pareto_entries,
    pareto_fast_alone,
    pareto_metric,
    pareto_standings,
)
from quantyard.protocol.measurements import EvalReport
from quantyard.report_page.render import render_report_page
from tests.evaluations import LARGE, simulated
from tests.manifests import manifest_of

# In LARGE, Q4_0 is larger than IQ4_XS (4.67 and 4.46 bits), worse (0.058 and 0.041), and so slower.
BEATEN, WINNER = "Q4_0", "IQ4_XS"


def report(**options: bool) -> EvalReport:
    return simulated(LARGE, title="Lagoon", n_params=1.1e9, n_tasks=2, **options)


# ---- the definition ----------------------------------------------------------------------------------


def test_one_advantage_is_enough_to_be_on_the_front() -> None:
    one, other = ParetoEntry("a", 10, 0.5, 20.0), ParetoEntry("b", 10, 0.5, 20.1)
    assert pareto_beats(other, one) and not pareto_beats(one, other)
    assert not pareto_beats(one, one), "equals do not beat each other"
    assert pareto_beaten_by([one, other, ParetoEntry("c", 9, 0.6, 1.0)]) == {"a": ("b",), "b": (), "c": ()}


@given(st.lists(st.tuples(*[st.integers(1, 5)] * 3), min_size=1, max_size=12))
def test_what_is_beaten_has_a_winner_on_the_front_and_the_front_none(rows: list[tuple[int, int, int]]) -> None:
    entries = [ParetoEntry(str(i), size, loss, speed) for i, (size, loss, speed) in enumerate(rows)]
    found = pareto_beaten_by(entries)
    front = {label for label, winners in found.items() if not winners}
    assert front
    for (size, loss, speed), winners in zip(rows, found.values(), strict=True):
        dominating = {
            str(i) for i, row in enumerate(rows)
            if row[0] <= size and row[1] <= loss and row[2] >= speed and row != (size, loss, speed)
        }  # fmt: skip
        assert set(winners) == dominating
        assert not winners or front & set(winners)


def test_without_a_speed_of_all_size_and_quality_decide() -> None:
    fast, slow = ParetoEntry("fast", 10, 0.5, 30.0), ParetoEntry("slow", 9, 0.5, 10.0)
    assert pareto_beaten_by([fast, slow]) == {"fast": (), "slow": ()}
    assert pareto_fast_alone([fast, slow]) == ("fast",)
    unknown = ParetoEntry("unknown", 20, 0.1)
    assert pareto_beaten_by([fast, slow, unknown]) == {"fast": ("slow",), "slow": (), "unknown": ()}
    assert pareto_fast_alone([fast, slow, unknown]) == ()


# ---- in words ----------------------------------------------------------------------------------------


def test_what_beats_a_file_is_told_with_both_numbers() -> None:
    found = report()
    assert pareto_metric(found) == "mean KLD"
    said = pareto_standings(pareto_entries(found), pareto_metric(found))
    figures = "4.5 % smaller, mean KLD 0.0410 against 0.0580, 34.2 against 32.7 tokens/s"
    assert said == {BEATEN: f"beaten by {WINNER}: {figures}"}


def test_many_winners_are_named_together_and_speed_alone_is_said_so() -> None:
    entries = [
        ParetoEntry("a", 1, 1, 9.0),
        ParetoEntry("b", 2, 1, 9.0),
        ParetoEntry("c", 3, 1, 9.0),
        ParetoEntry("d", 4, 2, 10.0),
    ]
    said = pareto_standings(entries, "mean KLD")
    assert said["c"] == "beaten by a and b: at least as small, as accurate and as fast"
    assert said["d"] == "on the front for its speed alone"
    assert "a" not in said


def test_without_divergence_perplexity_tells_and_without_either_there_is_no_front() -> None:
    assert pareto_entries(report(divergence=False)) == ()
    bare = [m.model_copy(update={"divergence": m.divergence and m.divergence.model_copy(update={"mean_kld": None})})
            for m in report().measurements]  # fmt: skip
    only_ppl = report().model_copy(update={"measurements": tuple(bare)})
    assert pareto_metric(only_ppl) == "ΔPPL"
    assert pareto_standings(pareto_entries(only_ppl), "ΔPPL")[BEATEN].startswith(
        f"beaten by {WINNER}: 4.5 % smaller, ΔPPL +3.3"
    )


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_report_with_a_quality_that_is_no_finite_number_is_none(number: float) -> None:
    data = report().model_dump()
    data["measurements"][-1]["divergence"]["mean_kld"]["value"] = number
    with pytest.raises(ValidationError, match="finite number"):
        EvalReport.model_validate(data)


# ---- the same everywhere -----------------------------------------------------------------------------


def _hollow(page: str, form: str) -> set[str]:
    """The names of the hollow points of the plots of this width; without the script."""
    drawings = re.findall(rf'<svg class="plot {form}".*?</svg>', page, re.DOTALL)
    return set(re.findall(r'class="spot point beaten".*?<title>(\S+)\n', drawings[0], re.DOTALL))


@pytest.mark.parametrize("form", ["wide", "narrow"])
def test_report_and_page_name_the_beaten_files_alike(form: str) -> None:
    manifest = manifest_of(LARGE)
    (found,) = manifest.evaluations.values()
    beaten = {label for label, winners in pareto_beaten_by(pareto_entries(found)).items() if winners}
    page = render_report_page(manifest, found.suite.name)
    assert beaten == {BEATEN} == _hollow(page, form)
    said = pareto_standings(pareto_entries(found), pareto_metric(found))[BEATEN]
    assert f"<b><bdi>{BEATEN}</bdi></b> is {said}." in page
    assert f"It is {said}." in render_report_sentences(found)


def test_a_page_on_which_no_file_is_beaten_says_so() -> None:
    quants: Sequence[tuple[str, float, float]] = LARGE[:3]
    manifest = manifest_of(quants)
    assert "No file is beaten by another." in render_report_page(manifest, next(iter(manifest.evaluations)))
