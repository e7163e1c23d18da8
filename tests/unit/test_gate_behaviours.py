"""Budgets of behaviours: read strictly, and held against what was measured."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from eval.analysis.statistics import paired_proportions_interval
from quantyard.gate.behaviours import GATE_BEHAVIOURS
from quantyard.gate.budgets import BadBudgets, load_gate_budgets
from quantyard.gate.judge import judge_gate_budgets
from quantyard.protocol.estimates import Interval
from quantyard.protocol.gate import BudgetResult, GateReport
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
    assert missing.finding == "the loss of right answers is not known: nothing that was asked decides it"


def _default(score: BehaviourScore | None, quant: str = QUANT) -> list[BudgetResult]:
    manifest = _manifest(score) if score else manifest_of()
    results = judge_gate_budgets(manifest, [quant], "standard", load_gate_budgets(None)).results
    return [found for found in results if found.budget in GATE_BEHAVIOURS]


def test_the_default_gate_says_what_was_not_asked_and_does_not_count_it(tmp_path: Path) -> None:
    found = _default(None)
    assert {one.budget for one in found} == set(GATE_BEHAVIOURS)
    assert {one.outcome for one in found} == {"not judged"}
    assert all("SUITE=behaviour" in one.finding for one in found)
    assert len({one.finding for one in found}) == len(found), "each says which behaviour it means"
    assert any(one.finding.startswith("the loss of right answers on tool_calls ") for one in found)
    assert any(one.finding.startswith("the loss of right answers on the other behaviours ") for one in found)
    (asked,) = _held(tmp_path, "defaults: {max_loops_increase: {reasoning: 3}}", _score()).results
    assert asked.outcome == "not measured"  # a file of budgets that asks for it


def test_the_default_gate_judges_behaviours_that_were_asked() -> None:
    fair = {one.budget: one.outcome for one in _default(_score()) if one.task == "tool_calls"}
    assert fair == dict.fromkeys(GATE_BEHAVIOURS, "passed")
    broken = _default(_score(loss=0.4, longer=80))
    assert {one.budget for one in broken if one.outcome == "failed"} == {"max_behaviour_loss", "max_length_increase"}


def test_a_taste_of_a_behaviour_decides_nothing_by_default() -> None:
    taste = _default(_score(loss=0.4).model_copy(update={"n": 6}))
    assert {one.outcome for one in taste} == {"not judged"}
    (loss,) = (one for one in taste if (one.budget, one.task) == ("max_behaviour_loss", "tool_calls"))
    assert loss.finding.startswith("the loss of right answers on tool_calls is not judged: 6 scenarios")


# Family → the share of scenarios that flip by chance in a file that loses nothing: twice the share of tokens of which
# llama.cpp's table says that the usual type of the family prefers another, since an answer turns on a few of them.
FLIPS = {"unquantized": 0.05, "8-bit": 0.05, "6-bit": 0.08, "5-bit": 0.12, "4-bit": 0.16, "3-bit": 0.3}
SIZES = {"tool_calls": 77, "structured_output": 33}  # the largest and the smallest of ours


@pytest.mark.commands
@pytest.mark.parametrize(("family", "behaviour"), list(itertools.product(FLIPS, SIZES)))
def test_a_file_that_loses_nothing_passes_the_default_limits(family: str, behaviour: str) -> None:
    limits = load_gate_budgets(None).quants[family].max_behaviour_loss
    assert limits is not None
    limit, n, each = limits.get(behaviour, limits["*"]) / 100, SIZES[behaviour], FLIPS[family] / 2
    passes = fails = 0.0
    for lost, gained in itertools.product(range(n // 2), repeat=2):
        ways = math.comb(n, lost) * math.comb(n - lost, gained)
        chance = ways * each ** (lost + gained) * (1 - 2 * each) ** (n - lost - gained)
        if chance > 1e-7:
            found = paired_proportions_interval(lost, gained, n)
            passes, fails = passes + chance * (-found.low <= limit), fails + chance * (-found.high > limit)
    assert passes >= 0.94 and fails < 1e-3


@pytest.mark.parametrize(("text", "says"), [
    ("max_behaviour_loss: {tool_call: 3}", "'tool_call' is not a behaviour: tool_calls, instructions"),
    ("max_length_increase: -1", "max_length_increase"), ("max_loops_increase: yes", "max_loops_increase is True"),
    ("max_loops_increase: 3, only_if_measured: [max_loop_increase]", "'max_loop_increase' is not a budget. Did you"),
    ("only_if_measured: [max_loops_increase]", "sets no budget"),
    ("max_loop_increase: 3", "Did you mean 'max_loops_increase'?"),
])  # fmt: skip
def test_a_budget_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text(f"defaults: {{{text}}}")
    with pytest.raises(BadBudgets, match=says.replace("?", r"\?")):
        load_gate_budgets(path)
