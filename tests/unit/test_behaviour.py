"""Behaviours: what is drawn, how answers are read, and the statistics of the report, against calculations by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.analysis.behaviour import behaviour_scores, behaviour_share_delta, with_behaviour_outcomes
from eval.analysis.verdicts import compare_evaluations
from eval.report import Inputs, build_eval_report
from eval.scenarios.checks import CheckedAnswer, is_right_answer, scenario_chance
from eval.scenarios.scenario import Scenario, drawn_scenario_blocks, load_scenarios
from eval.scenarios.text_checks import TEXT_RULES, count_phrase, count_sentences, count_words
from eval.scenarios.value_checks import (
    SCHEMA_KEYWORDS,
    is_right_choice,
    is_right_json,
    is_right_number,
    scenario_value_conforms,
)
from quantyard.metrics.behaviour_figures import BEHAVIOUR_TITLES, behaviour_rows, behaviour_variance_sentence
from quantyard.metrics.verdicts import n_corrected_comparisons
from quantyard.plan.suites import BadSuite, adjusted_suite, find_suite
from quantyard.protocol.behaviour import BEHAVIOUR_NAMES, BehaviourEntry, BehaviourName, BehaviourSettings
from quantyard.protocol.behaviour_run import BehaviourAnswer, BehaviourOutcome, BehaviourRun
from quantyard.protocol.evaluation import ReportRequest, Suite, TaskEntry
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.task_results import FileFacts
from tests.evaluations import evaluation, outcome, right_or_wrong


def _answer(right: int, tokens: int = 10, *, unfinished: bool = False, loop: bool = False) -> BehaviourAnswer:
    return BehaviourAnswer(is_right=bool(right), n_tokens=tokens, is_unfinished=unfinished, is_loop=loop)


def _run(label: str, answers: list[list[BehaviourAnswer]], chance: float = 0.0) -> BehaviourRun:
    names = tuple(f"q{i}" for i in range(len(answers)))
    found = BehaviourOutcome(
        suite="tool_calls", chance=chance, questions=names, hashes=names, answers=tuple(map(tuple, answers))
    )
    file = FileFacts(label=label, size_bytes=1, bits_per_weight=8, n_params=1, architecture="llama")
    return BehaviourRun(file=file, outcomes=(found,))


def _report(base: list[list[BehaviourAnswer]], other: list[list[BehaviourAnswer]], chance: float = 0.0) -> EvalReport:
    parts = {"behaviour": BehaviourSettings(), "divergence": None, "speed": None}
    suite = Suite(name="mine", tasks=(TaskEntry(task="arc"),), **parts)
    request = ReportRequest(title="M", suite=suite, baseline="BF16", labels=("BF16", "Q4_K_M"))
    return build_eval_report(request, [
        Inputs(label, evaluation(label, outcome("arc", right_or_wrong([1, 0] * 50))), None, None,
               behaviour=_run(label, answers, chance))
        for label, answers in (("BF16", base), ("Q4_K_M", other))
    ])  # fmt: skip


# ---- statistics, by hand -----------------------------------------------------------------------------


def test_a_difference_of_accuracy_is_mcnemar_s_corrected_with_the_tasks() -> None:
    base, other = [[_answer(1)] for _ in range(40)], [[_answer(i >= 8)] for i in range(40)]  # 8 lost, none gained
    report = _report(base, other)
    (score,) = report.measurements[1].behaviours
    found = score.comparison
    assert found
    assert (found.lost, found.gained, found.n) == (8, 0, 40)
    assert found.mcnemar_p == pytest.approx(2 * 0.5**8)
    assert found.adjusted_p == pytest.approx(2 * 2 * 0.5**8)  # Holm: the smaller p of two, times two
    assert n_corrected_comparisons(report) == 2
    assert found.verdict == "worse"
    assert score.accuracy.value == pytest.approx(0.8)
    assert [c.task for c in report.measurements[1].comparisons] == ["arc"]  # behaviours have a table of their own


def test_a_difference_of_length_is_student_s_of_the_pairs() -> None:
    base, other = [10, 20, 30, 40], [12, 26, 30, 48]  # differences 2, 6, 0, 8: mean 4, standard deviation √(40/3)
    report = _report([[_answer(1, n)] for n in base], [[_answer(1, n)] for n in other])
    (score,) = report.measurements[1].behaviours
    assert score.length.value == pytest.approx(29)
    assert score.length_delta
    assert score.length_delta.value == pytest.approx(4)
    half = 3.182446 * math.sqrt(40 / 3) / 2  # t of 3 degrees of freedom
    assert score.length_delta.high - 4 == pytest.approx(half, rel=1e-4)


def test_a_difference_of_shares_is_tango_s() -> None:
    """Without a flip its ends are ± z² / (n + z²); one question lost and one gained of four is 0, both ways alike."""
    same = behaviour_share_delta(np.zeros((44, 1)), np.zeros((44, 1)))
    assert (same.low, same.high) == pytest.approx((-0.080296, 0.080296), abs=1e-6)  # 3.841459 / 47.841459
    flipped = behaviour_share_delta(np.array([[1.0], [0], [0], [0]]), np.array([[0.0], [1], [0], [0]]))
    assert flipped.value == 0
    assert flipped.high == pytest.approx(-flipped.low)


def test_seeds_are_a_random_effect() -> None:
    """Two questions of three answers, 1 1 0 and 0 0 0: the variance within is (1/3 + 0) / 2, that of the means
    (2/3)² / 2, less a third of the former.
    """
    answers = [[_answer(1), _answer(1), _answer(0)], [_answer(0)] * 3]
    report = _report(answers, answers)
    (score,) = report.measurements[0].behaviours
    assert (score.n, score.n_answers) == (2, 3)
    assert score.accuracy.value == pytest.approx(1 / 3)
    assert score.seed_variance == pytest.approx(1 / 6)
    assert score.question_variance == pytest.approx(2 / 9 - 1 / 18)
    assert "50 % of the variance" in behaviour_variance_sentence(report.measurements)  # 1/6 and 1/6


def test_a_baseline_that_only_never_calls_has_no_signal() -> None:
    """Ten of forty scenarios want no call: a model that never calls gets 25 %."""
    answers = [[_answer(i < 10)] for i in range(40)]
    report = _report(answers, answers, chance=0.25)
    (score,) = report.measurements[1].behaviours
    assert score.comparison
    assert score.comparison.verdict == "no signal"


def test_files_that_were_asked_other_questions_are_not_compared() -> None:
    one, two = _run("BF16", [[_answer(1)]] * 3), _run("Q4_K_M", [[_answer(1)]] * 3)
    changed = two.outcomes[0].model_copy(update={"hashes": ("q0", "q1", "other")})
    pair = [with_behaviour_outcomes(evaluation(run.file.label), run)
            for run in (one, two.model_copy(update={"outcomes": (changed,)}))]  # fmt: skip
    with pytest.raises(Exception, match="questions of task behaviour:tool_calls differ"):
        compare_evaluations(pair[0], pair[1:], 0.01)


def test_a_file_that_could_not_be_asked_is_still_compared_by_its_tasks() -> None:
    """As a file of others that lost its chat template."""
    task, run = outcome("arc", right_or_wrong([1, 0] * 50)), _run("Q4_K_M", [[_answer(1)]] * 3)
    bare = run.model_copy(update={"outcomes": (), "reason": "it has no chat template"})
    suite = Suite(name="mine", tasks=(TaskEntry(task="arc"),), divergence=None, speed=None)
    request = ReportRequest(title="M", suite=suite, baseline="BF16", labels=("BF16", "Q4_K_M"))
    report = build_eval_report(request, [
        Inputs("BF16", evaluation("BF16", task), None, None, behaviour=_run("BF16", [[_answer(1)]] * 3)),
        Inputs("Q4_K_M", evaluation("Q4_K_M", task), None, None, behaviour=bare),
    ])  # fmt: skip
    first, second = report.measurements
    assert first.behaviours and second.behaviours == () and second.no_behaviours == "it has no chat template"
    assert [c.task for c in second.comparisons] == ["arc"]


def test_a_file_without_behaviours_has_no_scores() -> None:
    assert behaviour_scores(None, None, ()) == ()


def test_the_baseline_comes_first_in_every_kind() -> None:
    report = _report([[_answer(1)]] * 3, [[_answer(0)]] * 3)
    assert [(row.title, row.label) for row in behaviour_rows(report.measurements)] == [
        ("tool calls", "BF16"), ("tool calls", "Q4_K_M"),
    ]  # fmt: skip


# ---- what is drawn -----------------------------------------------------------------------------------


def test_a_larger_limit_computes_the_same_blocks_and_more() -> None:
    whole = drawn_scenario_blocks(BehaviourEntry(suite="tool_calls"), 1234)
    assert sorted(each.id for block in whole for each in block) == sorted(s.id for s in load_scenarios("tool_calls"))
    for limit in (1, 6, 7, 30):
        few = drawn_scenario_blocks(BehaviourEntry(suite="tool_calls", limit=limit), 1234)
        assert few == whole[: len(few)]
        assert sum(map(len, few)) >= limit
        assert sum(map(len, few[:-1])) < limit


def test_a_small_draw_holds_several_categories() -> None:
    (block,) = drawn_scenario_blocks(BehaviourEntry(suite="tool_calls", limit=6), 1234)
    assert len({scenario.category for scenario in block}) >= 5


# ---- scenarios ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BEHAVIOUR_NAMES)
def test_every_reference_is_right_and_every_wrong_answer_is_wrong(name: BehaviourName) -> None:
    for scenario in load_scenarios(name):
        if scenario.reference:
            assert is_right_answer(scenario, CheckedAnswer.of(scenario.reference)), (scenario.id, scenario.reference)
        else:
            assert name == "tool_calls", scenario.id  # whose right answers have many forms: test_tool_calls.py
        for wrong in scenario.wrong:
            assert not is_right_answer(scenario, CheckedAnswer.of(wrong)), (scenario.id, wrong)
        assert scenario_chance(scenario) == 1 or not is_right_answer(scenario, CheckedAnswer.of("")), scenario.id


@pytest.mark.parametrize("name", BEHAVIOUR_NAMES)
def test_every_scenario_has_wrong_answers_and_a_name_of_its_own(name: BehaviourName) -> None:
    scenarios = load_scenarios(name)
    assert len({scenario.id for scenario in scenarios}) == len(scenarios)
    assert len({_question(scenario) for scenario in scenarios}) == len(scenarios)
    for scenario in scenarios:
        assert scenario.wrong or name == "tool_calls", scenario.id


def _question(scenario: Scenario) -> str:
    return json.dumps([scenario.system, scenario.history, scenario.user])


def test_every_kind_has_a_title() -> None:
    assert set(BEHAVIOUR_TITLES) == set(BEHAVIOUR_NAMES)


# ---- JSON by a schema --------------------------------------------------------------------------------


def test_our_check_of_a_schema_agrees_with_jsonschema_on_every_answer() -> None:
    import jsonschema

    for scenario in load_scenarios("structured_output"):
        schema: Any = scenario.checks[0]["schema"]
        assert _keywords(schema) <= SCHEMA_KEYWORDS, scenario.id
        validator = jsonschema.Draft202012Validator(schema)
        for text in (scenario.reference, *scenario.wrong):
            try:
                value = json.loads(text)
            except ValueError:
                continue
            assert scenario_value_conforms(value, schema) is validator.is_valid(value), (scenario.id, text)


def _keywords(schema: Any) -> set[str]:
    below = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return set(schema).union(*(_keywords(each) for each in below))


def test_json_may_stand_in_a_fence_and_not_among_words() -> None:
    check = {"schema": {"type": "object"}, "value": {"a": 1}}
    assert is_right_json('```json\n{"a": 1}\n```\n', check)
    assert not is_right_json('Here: ```json\n{"a": 1}\n```', check)
    assert not is_right_json("[" * 100_000, check)


# ---- numbers and choices -----------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value", "is_right"), [
    ("Answer: 42", 42, True), ("**Answer:** 42", 42, True), ("The answer is 42.", 42, True), ("6 × 7 = 42", 42, True),
    ("Answer: 1,250.50 euros", 1250.5, True), ("Answer: \N{MINUS SIGN}4", -4, True),
    ("Answer: 41\nI mean 42", 42, False), ("My first answer: 7. Answer: 42", 42, True), ("", 42, False),
    ("forty-two", 42, False),
])  # fmt: skip
def test_a_number_is_read_after_the_last_answer(text: str, value: float, is_right: bool) -> None:
    assert is_right_number(text, {"value": value}) is is_right


@pytest.mark.parametrize(("text", "is_right"), [
    ("Answer: B", True), ("B", True), ("B) red", True), ("**Answer: (B)**", True), ("The answer is B.", True),
    ("Answer: A", False), ("Because", False), ("", False), ("A or B. Answer: B", True),
])  # fmt: skip
def test_a_choice_is_read_after_the_last_answer(text: str, is_right: bool) -> None:
    assert is_right_choice(text, {"value": "B"}) is is_right


# ---- rules of texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "n"), [
    ("One. Two! Three?", 3), ("Wait... what?", 2), ("No end", 1), ("It costs 2.50 euros.", 1),
    ("春天来了。花都开了。", 2), ('He said "No." and left.', 2), ("", 0),
])  # fmt: skip
def test_sentences_are_counted_by_their_ends(text: str, n: int) -> None:
    assert count_sentences(text) == n


@pytest.mark.parametrize(("text", "n"), [("It's a well-known fact.", 4), ("Ça va ?", 2), ("", 0), ("1,050 g", 3)])
def test_words_are_runs_of_letters_and_digits(text: str, n: int) -> None:
    assert count_words(text) == n


def test_a_phrase_is_not_found_within_a_longer_word() -> None:
    assert count_phrase("The garden, a gardener's garden.", "garden") == 2
    assert count_phrase("最多可以借六本书", "六本") == 1


def test_every_rule_of_a_text_is_asked_somewhere() -> None:
    asked = {str(c["rule"]) for name in BEHAVIOUR_NAMES for s in load_scenarios(name) for c in s.checks if "rule" in c}
    assert asked == set(TEXT_RULES)


# ---- the part of a suite -----------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "says"), [
    ("{suites: []}", "behaviour.suites is"), ("{suites: [tool_call]}", "behaviour.suites.1.suite is 'tool_call'"),
    ("{suites: [reasoning, reasoning]}", "behaviour names 'reasoning' twice"),
    ("{suites: [{suite: reasoning, seed: 3}]}", "unknown key 'seed'. Did you mean 'seeds'?"),
    ("{limit: 3}", "behaviour: unknown key 'limit'"), ("{suites: [{suite: reasoning, seeds: 0}]}", "seeds is 0"),
])  # fmt: skip
def test_a_part_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"tasks: []\nbehaviour: {text}\n")
    with pytest.raises(BadSuite, match=re.escape(says)):
        find_suite(str(path))


def test_a_name_alone_is_a_kind_and_true_is_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("behaviour: {suites: [tool_calls, {suite: reasoning, limit: 5, seeds: 4}]}\n")
    found = find_suite(str(path)).suite.behaviour
    assert found and [(e.suite, e.limit, e.n_answers) for e in found.suites] == [
        ("tool_calls", None, 1), ("reasoning", 5, 4),
    ]  # fmt: skip
    path.write_text("behaviour: true\n")
    whole = find_suite(str(path)).suite.behaviour
    assert whole and tuple(entry.suite for entry in whole.suites) == BEHAVIOUR_NAMES
    path.write_text("tasks: [piqa]\n")
    assert find_suite(str(path)).suite.behaviour is None


def test_a_limit_of_the_command_line_is_for_behaviours_too() -> None:
    suite = adjusted_suite(find_suite("behaviour"), limit=7)
    assert suite.behaviour and {entry.limit for entry in suite.behaviour.suites} == {7}
