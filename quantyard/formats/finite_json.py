"""Finite numbers only: no NaN and no infinity in the JSON that Quantyard writes or exchanges with a stage.

`strict_json.py` reads JSON that others wrote.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, TypeVar

_MAX_DEPTH: Final = 32  # levels of nested lists and objects
MAX_INT: Final = 2**63
_MAX_NUMBER: Final = 1e100  # larger than any measurement, and sums and products of a few such numbers stay finite
T = TypeVar("T")


class BeyondMeasureError(ValueError):
    """A number that no measurement has: NaN, infinite, or larger than any."""


def dump_finite_json(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps(value, indent=indent, allow_nan=False)


def only_finite_json(value: T) -> T:
    """The value itself, for a field of a pydantic model.

    Raises:
        BeyondMeasureError: it holds a number that is not finite, or beyond any measure; names the place.
        ValueError: it holds an integer beyond 64 bits, or is nested too deeply; names the place.
    """
    todo: list[tuple[object, str, int]] = [(value, "", 0)]
    while todo:
        one, where, depth = todo.pop()
        if isinstance(one, dict | list | tuple):
            if depth >= _MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")
            pairs = one.items() if isinstance(one, dict) else enumerate(one)
            todo += [(inner, f"{where}.{str(key)[:40]}".lstrip("."), depth + 1) for key, inner in pairs]
        elif problem := _json_problem_of(one):
            error = BeyondMeasureError if isinstance(one, float) else ValueError
            raise error(f"{where or 'it'} is {problem}")
    return value


def _json_problem_of(one: object) -> str:
    if isinstance(one, float) and not math.isfinite(one):
        return f"{one}, which is not a finite number"
    if isinstance(one, float) and abs(one) > _MAX_NUMBER:
        return f"{one}, which is too large for a measurement"
    return "an integer beyond 64 bits" if isinstance(one, int) and not -MAX_INT <= one < MAX_INT else ""
