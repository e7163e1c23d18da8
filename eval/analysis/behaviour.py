"""Behaviour scores of a file, and their differences from the baseline's, paired by question.

A question counts once, by the mean of its answers (see `sampled_answers.py`). Accuracies are compared like tasks, by
the same tests and corrected together with them; lengths and shares have an interval and no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from eval.analysis.sampled_answers import sampled_answers_difference, sampled_answers_mean
from eval.analysis.statistics import Numbers, paired_proportions_interval
from quantyard.protocol.behaviour_run import BehaviourOutcome, BehaviourRun
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import BehaviourScore, Comparison
from quantyard.protocol.task_results import Evaluation, MetricOutcome, TaskOutcome

_PREFIX: Final = "behaviour:"  # of the task that stands for a kind where verdicts are found
_METRIC: Final = "accuracy"
_FIELDS: Final = ("is_right", "n_tokens", "is_unfinished", "is_loop")  # of an answer
_SHARES: Final = ("is_unfinished", "is_loop")  # compared without a verdict


def with_behaviour_outcomes(evaluation: Evaluation, run: BehaviourRun | None) -> Evaluation:
    """The evaluation with each kind as one more task, so that its verdict is corrected together with all others."""
    outcomes = tuple(_behaviour_task(outcome) for outcome in (run.outcomes if run else ()))
    return evaluation.model_copy(update={"outcomes": (*evaluation.outcomes, *outcomes)})


def with_asked_behaviours(baseline: Evaluation, other: Evaluation) -> Evaluation:
    """The baseline without the kinds that the other file could not be asked, as one without a chat template."""
    asked = {outcome.task for outcome in other.outcomes}
    kept = (o for o in baseline.outcomes if o.task in asked or not o.task.startswith(_PREFIX))
    return baseline.model_copy(update={"outcomes": tuple(kept)})


def without_behaviours(compared: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons of tasks."""
    return tuple(found for found in compared if not found.task.startswith(_PREFIX))


def behaviour_scores(
    run: BehaviourRun | None, baseline: BehaviourRun | None, compared: Sequence[Comparison]
) -> tuple[BehaviourScore, ...]:
    """The scores of one file.

    Args:
        baseline: None of the baseline itself.
        compared: the file's comparisons, behaviours among them.
    """
    ours = ((found.task.removeprefix(_PREFIX), found) for found in compared if found.task.startswith(_PREFIX))
    by_name = {name: found.model_copy(update={"task": name}) for name, found in ours}
    others = {outcome.suite: outcome for outcome in (baseline.outcomes if baseline else ())}
    return tuple(
        _behaviour_score(outcome, others.get(outcome.suite), by_name.get(outcome.suite))
        for outcome in (run.outcomes if run else ())
    )


def _behaviour_task(outcome: BehaviourOutcome) -> TaskOutcome:
    means = _per_question(outcome, "is_right").mean(axis=1)
    metric = MetricOutcome(
        name=_METRIC, filter="none", value=float(means.mean()), stderr=None, higher_is_better=True,
        per_question=tuple(means.tolist()),
    )  # fmt: skip
    task = f"{_PREFIX}{outcome.suite}"
    return TaskOutcome(
        task=task, entry=task, version="1", output_type="generate_until", num_fewshot=0, n=len(means),
        chance=outcome.chance, doc_hashes=outcome.hashes, metrics=(metric,), duration_s=0.0,
    )  # fmt: skip


def _behaviour_score(
    outcome: BehaviourOutcome, baseline: BehaviourOutcome | None, compared: Comparison | None
) -> BehaviourScore:
    values = {name: _per_question(outcome, name) for name in _FIELDS}
    right, length, unfinished, loops = (sampled_answers_mean(values[name]) for name in _FIELDS)
    return BehaviourScore(
        suite=outcome.suite, n=right.n_questions, n_answers=right.n_seeds, accuracy=right.result, length=length.result,
        thought=float(_per_question(outcome, "n_thought").mean()), unfinished=unfinished.result, loops=loops.result,
        comparison=compared, question_variance=right.question_variance if right.n_seeds > 1 else None,
        seed_variance=right.seed_variance, **_behaviour_deltas(values, baseline),
    )  # fmt: skip


def _behaviour_deltas(values: Mapping[str, Numbers], baseline: BehaviourOutcome | None) -> dict[str, Interval]:
    if baseline is None:
        return {}
    ours = {name: _per_question(baseline, name) for name in _FIELDS}
    length = sampled_answers_difference(ours["n_tokens"], values["n_tokens"]).result
    shares = {f"{name.removeprefix('is_')}_delta": behaviour_share_delta(ours[name], values[name]) for name in _SHARES}
    return {"length_delta": length, **shares}


def behaviour_share_delta(baseline: Numbers, other: Numbers) -> Interval:
    """The difference of two shares, paired by question; shape (questions, answers).

    Tango's interval of single answers, which keeps its coverage where few differ, else Student's of the means.
    """
    if baseline.shape[1] > 1:
        return sampled_answers_difference(baseline, other).result
    lost, gained = float((baseline > other).sum()), float((other > baseline).sum())
    return paired_proportions_interval(lost, gained, len(baseline))


def _per_question(outcome: BehaviourOutcome, name: str) -> Numbers:
    """A field of every answer as a number, shape (questions, answers)."""
    return np.array([[float(getattr(answer, name)) for answer in answers] for answers in outcome.answers])
