"""Checks a user's own task for mistakes that lm-eval accepts silently and that lead to a score of 0.

lm-eval takes a misspelt field name as literal text, and never counts an answer as right that is not one of the choices.
lm-eval's own tasks are not checked: some of them do this on purpose.
"""

from __future__ import annotations

import difflib
from typing import Any

_FIELDS = ("doc_to_text", "doc_to_choice", "doc_to_target")


class TaskSlip(Exception):
    """A mistake in a task; the message does not name the task."""


def check_task(task: Any) -> None:
    """Check a task that was built.

    Raises:
        TaskSlip: the task has a mistake.
    """
    for key in _FIELDS:
        _check_field(key, task.config[key], task)
    if task.config.output_type == "multiple_choice" and not task.multiple_input:
        for number, doc in enumerate(task.eval_docs, 1):
            _check_answer(number, task.doc_to_target(doc), task.doc_to_choice(doc))


def task_lacks_examples(task: Any, shots: int) -> str:
    """Why a task cannot give `shots` examples; "" if it can, or if it chooses them itself.

    Where a task names no other split, lm-eval draws examples from the questions themselves, so a question might be
    shown with its own answer.
    """
    config, settings, sampler = task.config, getattr(task, "fewshot_cfg", None), getattr(task, "sampler", None)
    if not shots or settings is None or sampler is None:
        return ""
    others = task.has_training_docs() or (task.has_validation_docs() and task.has_test_docs())
    if settings.split is None and settings.samples is None and not others:
        return "has none apart from its questions. `fewshot_split: test` would take them from the other questions."
    there = len(sampler.fewshot_docs()) - (settings.split is not None and settings.split == config.test_split)
    return f"there are only {there}." if there < shots else ""


def _check_field(key: str, value: Any, task: Any) -> None:
    """A single word must be the name of a field; a template, a number, a list or None is accepted."""
    if not isinstance(value, str) or not value.isidentifier() or value in task.features:
        return
    near = difflib.get_close_matches(value, task.features, n=1)
    advice = f"Did you mean {near[0]!r}?" if near else f"Its fields are {', '.join(task.features)}."
    raise TaskSlip(f"{key} is {value!r}, which is not a field of its questions. {advice}")


def _check_answer(number: int, answer: Any, choices: list[Any]) -> None:
    right = answer if isinstance(answer, list) else [answer]
    if not right or not all(_is_choice_of_question(one, choices) for one in right):
        fact = f"the answer of question {number} is {answer!r}"
        raise TaskSlip(
            f"{fact}, which is not one of its {len(choices)} choices nor an index into them, counted from 0."
        )


def _is_choice_of_question(answer: Any, choices: list[Any]) -> bool:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return 0 <= answer < len(choices)
    return isinstance(answer, str) and answer in choices
