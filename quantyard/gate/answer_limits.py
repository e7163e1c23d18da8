"""Judges answers: the accuracy of tasks, behaviours, and the share of answers that conform to their JSON schema."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from quantyard.gate import findings as words
from quantyard.gate.behaviours import GATE_BEHAVIOURS
from quantyard.gate.budgets import is_gate_budget_pattern, most_specific_gate_budget
from quantyard.gate.judged_file import JudgedFile, judge_gate_interval, judge_unmeasured_loss
from quantyard.gate.sample_size import (
    gate_accuracy_loss,
    gate_answer_sample_size,
    gate_question_sample_size,
    gate_sample_size,
)
from quantyard.metrics.headline_metrics import headline_entry, metric_rank
from quantyard.metrics.intervals import wilson_interval
from quantyard.metrics.kinds import score_metric_kind
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.measurements import BehaviourScore, Comparison

# Of a behaviour whose budget counts only where it is measured. The smallest of ours has 33; `smoke` asks six.
_FEWEST_SCENARIOS: Final = 30


def judge_accuracy_loss(file: JudgedFile, name: str, limits: Mapping[str, float]) -> Iterator[BudgetResult]:
    """Judges every task that the suite or the budget names; "not measured" if no task could be judged."""
    judged, asked = set[str](), set[str]()
    for task, comparison in _tasks_to_judge(file, limits).items():
        pattern = most_specific_gate_budget(task, limits)
        if pattern is None:
            continue
        result = _accuracy_of(file, name, limits[pattern], comparison)
        meant = {p for p in limits if most_specific_gate_budget(task, [p])}
        asked, judged = asked | meant, judged | (meant if result.outcome != "not judged" else set())
        yield result
    yield from _without_judged_answers(file, name, limits, judged, asked)


def _accuracy_of(file: JudgedFile, name: str, limit: float, found: Comparison) -> BudgetResult:
    if found.verdict == "no signal":
        assert file.report is not None
        finding = words.gate_no_signal(found, file.report.baseline)
        return file.result(name, limit, "not judged", finding, task=found.task)
    interval = gate_accuracy_loss(found, file.z)
    needed = gate_question_sample_size(
        found, abs(limit - interval.value) / 100, (interval.high - interval.value) / 100, file.z
    )
    return judge_gate_interval(
        file, name, limit, interval, words.gate_questions_needed(needed, found.n, file.suite), found.task
    )


def _tasks_to_judge(file: JudgedFile, named: Iterable[str]) -> dict[str, Comparison]:
    """One comparison per task: the suite's entries (the tasks of a group that has no score of its own), and the tasks
    that the budget names. Only shares where more is better: a perplexity is not an accuracy.
    """
    if file.found is None or file.report is None:
        return {}
    rising = {(s.task, s.metric) for s in file.found.scores if s.higher_is_better}
    shares = [c for c in file.found.comparisons if (c.task, c.metric) in rising and score_metric_kind(c) == "share"]
    by_task: dict[str, Comparison] = {}
    for comparison in sorted(shares, key=lambda c: metric_rank(c.metric)):
        by_task.setdefault(comparison.task, comparison)
    entries = {entry.task for entry in file.report.suite.tasks}
    measured = {headline_entry(s.task) for s in file.found.scores}
    wanted = {headline_entry(task) for task in by_task} if not entries <= measured else entries
    wanted |= {name for name in named if not is_gate_budget_pattern(name)}
    order = dict.fromkeys(c.task for c in shares)
    return {task: by_task[task] for task in order if headline_entry(task) in wanted or task in wanted}


def judge_behaviour(file: JudgedFile, name: str, limits: Mapping[str, float]) -> Iterator[BudgetResult]:
    """Judges every behaviour that the budget names and the suite asks; "not measured" for what it does not ask."""
    judged, asked = set[str](), set[str]()
    for score in file.found.behaviours if file.found else ():
        pattern, found = most_specific_gate_budget(score.suite, limits), GATE_BEHAVIOURS[name](score, file.z)
        if pattern is None or found is None:
            continue
        meant = {p for p in limits if most_specific_gate_budget(score.suite, [p])}
        asked |= meant
        if finding := _why_behaviour_decides_nothing(file, name, score):
            yield file.result(name, limits[pattern], "not judged", finding, task=score.suite)
            continue
        judged |= meant
        needed = gate_sample_size(score.n, found.high - found.value, abs(limits[pattern] - found.value))
        needs = words.gate_questions_needed(needed, score.n, file.suite)
        yield judge_gate_interval(file, name, limits[pattern], found, needs, score.suite)
    yield from _without_judged_answers(file, name, limits, judged, asked)


def _without_judged_answers(
    file: JudgedFile, name: str, limits: Mapping[str, float], judged: Collection[str], asked: Collection[str]
) -> Iterator[BudgetResult]:
    """A result for each limit that judged nothing: nothing it means was `asked`, or what was asked decides nothing."""
    for pattern in limits:
        if pattern in judged:
            continue
        task, others = "" if pattern == "*" else pattern, pattern == "*" and len(limits) > 1
        if pattern not in asked:
            yield judge_unmeasured_loss(file, name, limits[pattern], task, others=others)
        elif name not in file.budget.only_if_measured:  # there each says itself that it does not count
            finding = words.gate_nothing_decides(name, task)
            yield file.result(name, limits[pattern], "not measured", finding, task=task)


def _why_behaviour_decides_nothing(file: JudgedFile, name: str, score: BehaviourScore) -> str:
    """"" where the score is to be judged."""
    if name == "max_behaviour_loss" and score.comparison and score.comparison.verdict == "no signal":
        assert file.report is not None
        return words.gate_no_signal(score.comparison, file.report.baseline)
    if name in file.budget.only_if_measured and score.n < _FEWEST_SCENARIOS:
        return words.gate_few_scenarios(name, score.suite, score.n)
    return ""


def judge_schema_rate(file: JudgedFile, name: str, limit: float) -> Iterator[BudgetResult]:
    contract = file.manifest.contracts.get(file.quant)
    rate = contract.schemas if contract else None
    if rate is None:
        finding = words.gate_no_schemas(file.manifest, file.quant, tested=contract is not None)
        yield file.result(name, limit, "not measured", finding)
        return
    interval = wilson_interval(rate.n_valid, rate.n, file.z)
    needed = gate_answer_sample_size(rate.n, interval.value, limit, file.z)
    yield judge_gate_interval(file, name, limit, interval, words.gate_answers_needed(needed, rate.n))
