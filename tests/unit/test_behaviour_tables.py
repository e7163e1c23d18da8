"""The table of behaviours: the same figures on report, card, page and terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from eval.rendering.markdown import render_report_markdown
from quantyard.card.render import card_differences, render_card
from quantyard.cli.render.evaluation import terminal_measured_behaviours
from quantyard.metrics.behaviour_figures import behaviours_left_out
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import BehaviourScore, Comparison, EvalReport
from quantyard.report_page.render import render_report_page
from quantyard.store.manifest import Manifest
from tests.cards import CONTEXT
from tests.manifests import manifest_of

FIGURES = ["85.0 %", "\N{MINUS SIGN}5.0", "worse", "93.5", "+12.5", "8.0 %", "4.0 %"]


def _interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def _scores(label: str) -> tuple[BehaviourScore, ...]:
    of_baseline = BehaviourScore(
        suite="tool_calls", n=77, n_answers=1, accuracy=_interval(0.9, 0.04), length=_interval(81, 5),
        unfinished=_interval(0.03, 0.02), loops=_interval(0.01, 0.01),
    )
    if label == "BF16":
        return (of_baseline,)
    found = Comparison(
        task="tool_calls", metric="accuracy", n=77, baseline=0.9, value=0.85, delta=_interval(-0.05, 0.02), lost=6,
        gained=2, mcnemar_p=0.001, adjusted_p=0.01, verdict="worse",
    )
    return (of_baseline.model_copy(update={
        "accuracy": _interval(0.85, 0.05), "comparison": found, "length": _interval(93.5, 6),
        "length_delta": _interval(12.5, 3), "unfinished": _interval(0.08, 0.03), "loops": _interval(0.04, 0.02),
        "unfinished_delta": _interval(0.05, 0.03), "loop_delta": _interval(0.03, 0.03),
    }),)  # fmt: skip


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    manifest = manifest_of().model_copy(deep=True)
    report = manifest.evaluations["standard"]
    found = tuple(m.model_copy(update={"behaviours": _scores(m.file.label)}) for m in report.measurements)
    manifest.evaluations["standard"] = report.model_copy(update={"measurements": found})
    return manifest


@pytest.fixture(scope="module")
def report(manifest: Manifest) -> EvalReport:
    return manifest.evaluations["standard"]


def _printed(report: EvalReport) -> str:
    out = Console(file=io.StringIO(), width=200)
    out.print(terminal_measured_behaviours(report))
    return out.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_every_place_has_the_same_figures(manifest: Manifest, report: EvalReport) -> None:
    shown = {
        "report": render_report_markdown(report).partition("## Behaviour")[2],
        "card": render_card(manifest, CONTEXT).partition("### Behaviour")[2],
        "page": render_report_page(manifest, "standard").partition('id="behaviours-table"')[2].partition("</table>")[0],
        "terminal": _printed(report),
    }
    for place, text in shown.items():
        said = re.sub(r"\s+|&nbsp;", " ", text)
        assert [figure for figure in FIGURES if figure not in said] == [], place
        assert "tool calls" in said, place


def test_the_summary_tells_the_verdicts_of_behaviours(report: EvalReport) -> None:
    assert "Of 1 behaviour, it is worse on 1 (tool calls)." in render_report_markdown(report)


def test_the_page_leads_to_the_table(manifest: Manifest) -> None:
    page = render_report_page(manifest, "standard")
    assert '<a href="#behaviour">' in page and 'id="behaviour-head"' in page


def test_a_card_with_behaviours_is_read_back_and_a_wrong_figure_found(manifest: Manifest) -> None:
    card = render_card(manifest, CONTEXT)
    assert card_differences(card, manifest, CONTEXT) == []
    wrong = card.replace("+12.5", "+2.5")
    assert wrong != card
    assert any("behaviour table" in line for line in card_differences(wrong, manifest, CONTEXT))


def test_without_behaviours_there_is_no_table() -> None:
    manifest = manifest_of()
    report = manifest.evaluations["standard"]
    assert terminal_measured_behaviours(report) is None
    assert "Behaviour" not in render_report_markdown(report) + render_card(manifest, CONTEXT)
    assert 'id="behaviour"' not in render_report_page(manifest, "standard")


def test_a_file_that_could_not_be_asked_is_named_with_its_reason(manifest: Manifest, report: EvalReport) -> None:
    why = {"behaviours": (), "no_behaviours": "it has no chat template"}
    bare = report.model_copy(
        update={"measurements": tuple(m.model_copy(update=why) for m in report.measurements)}
    )
    (told,) = behaviours_left_out(bare)
    assert told.startswith("behaviour of BF16, ") and told.endswith(": it has no chat template")
    assert f"- {told}" in render_report_markdown(bare)
    changed = manifest.model_copy(update={"evaluations": {"standard": bare}})
    assert "has no chat template" in render_card(changed, CONTEXT)
    assert "has no chat template" in render_report_page(changed, "standard")
