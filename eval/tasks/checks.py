"""Slips in somebody's own task that lm-eval takes in silence, and answers with a score of zero.

A field name that is not a field is asked, or expected, word for word; an answer that is not one of the choices is
never right. Tasks of lm-eval itself are not checked: some of them mean it.
"""

from __future__ import annotations

import difflib
from typing import Any

_FIELDS = ("doc_to_text", "doc_to_choice", "doc_to_target")


class TaskSlip(Exception):
    """What is wrong with the task, without its name."""


def check_task(task: Any) -> None:
    """Look for slips in a task that was built.

    Raises:
        Slip: there is one.
    """
    for key in _FIELDS:
        _check_field(key, task.config[key], task)
    if task.config.output_type == "multiple_choice" and not task.multiple_input:
        for number, doc in enumerate(task.eval_docs, 1):
            _check_answer(number, task.doc_to_target(doc), task.doc_to_choice(doc))


def task_lacks_examples(task: Any, shots: int) -> str:
    """Why a task cannot show so many examples; "" if it can, or if it chooses them itself.

    lm-eval takes them from the questions themselves where a task names no other split, so that a question might come
    with its own answer.
    """
    config, settings, sampler = task.config, getattr(task, "fewshot_cfg", None), getattr(task, "sampler", None)
    if not shots or settings is None or sampler is None:
        return ""
    others = task.has_training_docs() or (task.has_validation_docs() and task.has_test_docs())
    if settings.split is None and settings.samples is None and not others:
        return "has none apart from its questions. `fewshot_split: test` would take them from the other questions."
    there = len(sampler.fewshot_docs()) - (settings.split is not None and settings.split == config.test_split)
    return f"there are {there} only." if there < shots else ""


def _check_field(key: str, value: Any, task: Any) -> None:
    """A word alone has to be a field; a template, a number, a list and nothing at all are fine."""
    if not isinstance(value, str) or not value.isidentifier() or value in task.features:
        return
    near = difflib.get_close_matches(value, task.features, n=1)
    advice = f"Did you mean {near[0]!r}?" if near else f"Its fields are {', '.join(task.features)}."
    raise TaskSlip(f"{key} is {value!r}, which is not a field of its questions. {advice}")


def _check_answer(number: int, answer: Any, choices: list[Any]) -> None:
    right = answer if isinstance(answer, list) else [answer]
    if not right or not all(_is_choice(one, choices) for one in right):
        fact = f"the answer of question {number} is {answer!r}"
        raise TaskSlip(
            f"{fact}, which is not one of its {len(choices)} choices nor an index into them, counted from 0."
        )


def _is_choice(answer: Any, choices: list[Any]) -> bool:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return 0 <= answer < len(choices)
    return isinstance(answer, str) and answer in choices
