"""Answers that are values: a JSON document by a schema, a number, a choice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from eval.scenarios.tool_checks import is_same_value

_FENCED: Final = re.compile(r"\s*```(?:json)?\s*\n(.*?)```\s*", re.DOTALL | re.IGNORECASE)
_NUMBER: Final = re.compile(r"[-−]?\d+(?:[,   ]\d{3})*(?:\.\d+)?")  # noqa: RUF001  (a minus, spaces of thousands)
_ANSWER: Final = re.compile(r"answer\**\s*(?:is)?\s*[:=]?\s*\**", re.IGNORECASE)
_LETTER: Final = re.compile(r"\(?([A-Z])\)?(?![A-Za-z])")
_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict), "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str), "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "null": lambda value: value is None,
}  # fmt: skip
SCHEMA_KEYWORDS: Final = frozenset({
    "type", "properties", "required", "additionalProperties", "items", "enum", "description", "minItems", "maxItems",
    "minimum", "maximum", "pattern",
})  # fmt: skip


def is_right_json(text: str, check: Mapping[str, Any]) -> bool:
    """Whether the answer is JSON alone (a fence around it is allowed), conforms to the schema and has the values."""
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return scenario_value_conforms(value, check["schema"]) and is_same_value(value, check["value"])


def scenario_value_conforms(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value conforms to a schema of the keywords `SCHEMA_KEYWORDS`, which are those that scenarios use."""
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_TYPES[kind](value) for kind in kinds):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        return _does_object_conform(value, schema)
    if isinstance(value, list):
        long_enough = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return long_enough and all(scenario_value_conforms(each, schema.get("items", {})) for each in value)
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float):
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    return True


def _does_object_conform(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    known = schema.get("properties", {})
    complete = all(name in value for name in schema.get("required", ()))
    allowed = schema.get("additionalProperties", True) or set(value) <= set(known)
    parts = ((value[name], known[name]) for name in value if name in known)
    return bool(complete and allowed and all(scenario_value_conforms(part, form) for part, form in parts))


def is_right_number(text: str, check: Mapping[str, Any]) -> bool:
    """Whether the number after the last "answer", else the last number at all, is the expected one."""
    found = _NUMBER.findall(_after_answer(text) or text)
    if not found:
        return False
    first = found[0] if _after_answer(text) else found[-1]
    value = float(re.sub(r"[,\s]", "", first).replace("−", "-"))  # noqa: RUF001  (a minus)
    return math.isclose(value, check["value"], rel_tol=1e-9, abs_tol=1e-9)


def is_right_choice(text: str, check: Mapping[str, Any]) -> bool:
    """Whether the letter after the last "answer" is the expected one, or the answer begins with it alone."""
    said = (_after_answer(text) or text).strip().lstrip("*").strip()
    found = _LETTER.match(said)
    return found is not None and found[1] == check["value"]


def _after_answer(text: str) -> str:
    """What follows the last "answer" that a number or a letter can follow; "" if there is none."""
    marks = list(_ANSWER.finditer(text))
    return text[marks[-1].end() :] if marks else ""
