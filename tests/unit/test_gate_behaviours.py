"""Budgets of behaviours: read strictly, and held against what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantyard.gate.budgets import BadBudgets, load_gate_budgets
from quantyard.gate.judge import judge_gate_budgets
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import GateReport
from quantyard.protocol.measurements import BehaviourScore, Comparison
from quantyard.store.manifest import Manifest
from tests.manifests import manifest_of

QUANT = "Q4_K_M"


def _interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def _score(*, loss: float = 0.02, half: float = 0.01, longer: float = 10, verdict: str = "worse") -> BehaviourScore:
    comparison = Comparison(
        task="tool_calls", metric="accuracy", n=77, baseline=0.9, value=0.9 - loss, delta=_interval(-loss, half),
        lost=3, gained=1, mcnemar_p=0.01, adjusted_p=0.02, verdict=verdict,  # type: ignore[arg-type]
    )
    return BehaviourScore(
        suite="tool_calls", n=77, n_answers=1, accuracy=_interval(0.9 - loss, 0.05),
        length=_interval(100 + longer, 5), unfinished=_interval(0.08, 0.03), loops=_interval(0.04, 0.02),
        comparison=comparison, length_delta=_interval(longer, 4), unfinished_delta=_interval(0.04, 0.01),
        loop_delta=_interval(0.02, 0.05),
    )


def _manifest(score: BehaviourScore) -> Manifest:
    manifest = manifest_of().model_copy(deep=True)
    for suite, report in manifest.evaluations.items():
        changed = [m.model_copy(update={"behaviours": (score,)}) if m.file.label == QUANT else m
                   for m in report.measurements]  # fmt: skip
        manifest.evaluations[suite] = report.model_copy(update={"measurements": tuple(changed)})
    return manifest


def _held(folder: Path, text: str, score: BehaviourScore) -> GateReport:
    path = folder / "gate.yaml"
    path.write_text(text)
    return judge_gate_budgets(_manifest(score), [QUANT], "standard", load_gate_budgets(path))


@pytest.mark.parametrize(("budget", "outcome", "value"), [
    ("max_behaviour_loss: 4", "passed", 2), ("max_behaviour_loss: {tool_calls: 0.5}", "failed", 2),
    ("max_behaviour_loss: 2.5", "too few questions", 2),
    ("max_length_increase: 15", "passed", 10), ("max_length_increase: 5", "failed", 10),
    ("max_unfinished_increase: 6", "passed", 4), ("max_unfinished_increase: 2", "failed", 4),
    ("max_loops_increase: 4", "too few questions", 2),
])  # fmt: skip
def test_a_budget_is_held_against_the_interval(tmp_path: Path, budget: str, outcome: str, value: float) -> None:
    (found,) = _held(tmp_path, f"defaults: {{{budget}}}", _score()).results
    assert (found.outcome, found.task) == (outcome, "tool_calls")
    assert found.value == pytest.approx(value)
    assert "tool_calls" in found.finding


def test_a_narrow_budget_comes_before_a_wide_one(tmp_path: Path) -> None:
    report = _held(tmp_path, 'defaults: {max_behaviour_loss: {"*": 90, tool_calls: 0.5}}', _score())
    assert [(r.limit, r.outcome) for r in report.results] == [(0.5, "failed")]


def test_a_behaviour_that_was_not_asked_is_not_measured(tmp_path: Path) -> None:
    (found,) = _held(tmp_path, "defaults: {max_behaviour_loss: {reasoning: 3}}", _score()).results
    assert found.outcome == "not measured"


def test_a_baseline_that_guesses_decides_nothing(tmp_path: Path) -> None:
    (found, missing) = _held(tmp_path, "defaults: {max_behaviour_loss: 3}", _score(verdict="no signal")).results
    assert (found.outcome, missing.outcome) == ("not judged", "not measured")


@pytest.mark.parametrize(("text", "says"), [
    ("max_behaviour_loss: {tool_call: 3}", "'tool_call' is not a behaviour: tool_calls, instructions"),
    ("max_length_increase: -1", "max_length_increase"), ("max_loops_increase: yes", "max_loops_increase is True"),
    ("max_loop_increase: 3", "Did you mean 'max_loops_increase'?"),
])  # fmt: skip
def test_a_budget_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(f"defaults: {{{text}}}")
    with pytest.raises(BadBudgets, match=says.replace("?", r"\?")):
        load_gate_budgets(path)
