# ruff: noqa: INP001 (a helper of scripts, not a package)
"""The page on exit codes and kinds of errors."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TypeVar

from reference.markdown import code_text, first_sentence, table_text

import quantyard
from quantyard import errors
from quantyard.protocol.exit_codes import EXIT_CODES

_Class = TypeVar("_Class")


def exit_codes_page() -> Iterator[str]:
    """Exit codes, and the kinds of errors."""
    yield (
        "The program says how a command ended with its exit code. `make` turns every failure into its own exit code 2; "
        "use the program in scripts. Code 1 is never ours: Python or the shell could not start the program."
    )
    rows = ((int(row.code), code_text(row.name), row.meaning, row.what_to_do) for row in EXIT_CODES)
    yield table_text(("code", "name", "meaning", "what to do"), rows)
    yield (
        "A stage ends with 0, 2, 3, 4, 5, 70 or 130, which mean the same; a command whose stage failed ends as the "
        "stage did, and `serve` as the server did."
    )
    yield "## Kinds of errors"
    yield (
        "The kind of an error stands behind its message, and with `JSON=1` the command prints "
        '`{"error": {"kind": …, "message": …, "hint": …, "detail": …, "exit_code": …}}`. Kinds are stable. A '
        "stage that failed names a kind of its own; `stage-failed` stands where it named none."
    )
    yield table_text(("kind", "exit code", "meaning"), sorted(_error_kinds(), key=lambda row: row[0]))


def _error_kinds() -> Iterator[tuple[str, object, str]]:
    for error in all_errors():
        meaning = first_sentence(error.__doc__ or "")
        if issubclass(error, errors.GateClosed):
            for outcome, code in error.codes.items():
                yield code_text(f"gate-{outcome.replace(' ', '-')}"), int(code), meaning
        elif error is errors.StageFailed:
            yield code_text(error.kind), "as the stage", meaning
        elif error is errors.QuantyardError:
            yield code_text(error.kind), int(error.exit_code), "A bug of Quantyard."
        else:
            yield code_text(error.kind), int(error.exit_code), meaning


def all_errors() -> list[type[errors.QuantyardError]]:
    """Every class of error of the package."""
    for module in pkgutil.walk_packages(quantyard.__path__, "quantyard."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return _with_subclasses(errors.QuantyardError)


def _with_subclasses(top: type[_Class]) -> list[type[_Class]]:
    """The class, and all below it."""
    found, below = list[type[_Class]](), [top]
    while below:
        found.append(below.pop())
        below += found[-1].__subclasses__()
    return found
