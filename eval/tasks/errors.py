"""Explains why a task cannot be used; the usual reason is a mistake in the YAML of a user's own task."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path

from eval.tasks.checks import TaskSlip
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_UNKNOWN_KEY = re.compile(r"unexpected keyword argument '(\w+)'")
_HELP = "docs/how-to/your-own-questions.md shows tasks that work."


def unusable_task(name: str, path: Path | None, error: Exception) -> StageFailure:
    """The failure for a task that could not be built from this file."""
    where = f"The task {name!r}" + (f" ({path.name})" if path else "")
    if isinstance(error, ImportError):
        message = f"{where} needs a package that is not installed: {_task_error_line(error)}"
        return StageFailure(ExitCode.BAD_REQUEST, "missing-package", message, "Leave the task out of the suite.")
    if isinstance(error, TypeError) and (key := _UNKNOWN_KEY.search(str(error))):
        return StageFailure(ExitCode.BAD_REQUEST, "bad-task", f"{where} {_unknown_task_key(key[1])}", _HELP)
    reason = str(error) if isinstance(error, TaskSlip) else _task_error_reason(error)
    return StageFailure(ExitCode.BAD_REQUEST, "bad-task", f"{where} cannot be used: {reason}", _HELP)


def _unknown_task_key(key: str) -> str:
    from lm_eval.config.task import TaskConfig

    near = difflib.get_close_matches(key, [field.name for field in dataclasses.fields(TaskConfig)], n=1)
    return f"has the key {key!r}, which lm-eval does not know." + (f" Did you mean {near[0]!r}?" if near else "")


def _task_error_reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"its data has no {error} (a split, or a field of a question)."
    if isinstance(error, IndexError):
        return "its data has no questions, or an answer is not one of the choices."
    return f"{type(error).__name__}: {_task_error_line(error)}"


def _task_error_line(error: Exception) -> str:
    """The message of the first cause, in one line: lm-eval's errors around it say less."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split())[:500] or type(cause).__name__
