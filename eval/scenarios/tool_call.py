"""A tool call of an answer, and what every form of it needs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCall:
    """One call. `is_text`: the form knows texts alone, so an argument may stand for a number or a list."""

    name: str
    arguments: dict[str, Any]
    is_text: bool = False


class BrokenToolCall(Exception):
    """The answer begins a call and does not write it in a form that can be read."""


def tool_call_arguments(value: Any) -> dict[str, Any]:
    """The arguments of a call, as an object or as its JSON.

    Raises:
        ValueError, TypeError: they are not an object.
    """
    if isinstance(value, str):
        value, _ = DECODER.raw_decode(value.strip())
    if not isinstance(value, dict):
        raise TypeError("arguments that are not an object")
    return value


def tool_call_name(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: it is not one word.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError("a call without a name")
    return name
