"""Whether an answer makes the expected tool calls: the right tools, each once, with the right arguments."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from eval.scenarios.tool_call import BrokenToolCall, ToolCall
from eval.scenarios.tool_call_forms import parse_tool_calls


def makes_expected_calls(text: str, check: Mapping[str, Any], prompt_end: str = "") -> bool:
    """Whether the calls are those of `check["calls"]`, in any order; none are expected where it is empty.

    An expected call is a name, `arguments` that must be given, and `may`, those that may be left out. A value is one
    value, or `{"any_of": […]}`. Texts are compared without case and outer spaces, numbers as numbers.
    """
    try:
        calls = parse_tool_calls(text, prompt_end)
    except BrokenToolCall:
        return False
    expected: Sequence[Mapping[str, Any]] = check["calls"]
    return len(calls) == len(expected) and _is_each_expected_once(calls, expected)


def _is_each_expected_once(calls: Sequence[ToolCall], expected: Sequence[Mapping[str, Any]]) -> bool:
    if not calls:
        return True
    first, *rest = calls
    return any(
        _is_expected_call(first, call) and _is_each_expected_once(rest, [*expected[:at], *expected[at + 1 :]])
        for at, call in enumerate(expected)
    )


def _is_expected_call(call: ToolCall, expected: Mapping[str, Any]) -> bool:
    must, may = expected.get("arguments", {}), expected.get("may", {})
    if call.name != expected["name"] or not set(must) <= set(call.arguments) <= set(must) | set(may):
        return False
    wanted = {**may, **must}
    return all(_is_expected_value(value, wanted[key], call.is_text) for key, value in call.arguments.items())


def _is_expected_value(value: Any, expected: Any, is_text: bool = False) -> bool:
    if isinstance(expected, dict) and set(expected) == {"any_of"}:
        return any(_is_expected_value(value, one, is_text) for one in expected["any_of"])
    if is_text and isinstance(value, str) and not isinstance(expected, str):
        value = _value_of_text(value)
    return is_same_value(value, expected)


def _value_of_text(text: str) -> Any:
    """JSON, or what Python writes in its place (MiniCPM's template: `{'a': True}`); the text where it is neither."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return read(text.strip())
    return text


def is_same_value(value: Any, expected: Any) -> bool:
    """Whether two values of JSON are equal: texts without case and outer spaces, objects in any order."""
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None:
        return value is expected
    if isinstance(expected, int | float):
        return isinstance(value, int | float) and math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(expected, str):
        return isinstance(value, str) and " ".join(value.split()).casefold() == " ".join(expected.split()).casefold()
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) == len(expected) and all(map(_is_expected_value, value, expected))
    if not isinstance(value, dict) or set(value) != set(expected):
        return False
    return all(_is_expected_value(value[key], expected[key]) for key in expected)
