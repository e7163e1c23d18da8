"""JSON that others wrote, read without trust: bounded in size and depth, no key twice, no NaN, no half characters.

`strict_yaml.py` does the same for YAML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from quantyard.formats.names import shown_name

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 1_000_000  # each takes a hundred bytes of memory, however short it is
_MAX_DIGITS: Final = 20  # of an integer; 2**64 has as many


class JsonProblem(ValueError):
    """JSON that cannot be used; the message says why."""


def load_json(data: bytes, max_bytes: int, max_depth: int = MAX_DEPTH, max_values: int = MAX_VALUES) -> Any:
    """The one value in `data`, which is UTF-8.

    Raises:
        JsonProblem: too large, too many values, not JSON, nested too deep, or with a repeated key, a number that is
            not finite or is longer than 64 bits hold, or a surrogate.
    """
    if len(data) > max_bytes:
        raise JsonProblem(f"it has {len(data):,} bytes, and {max_bytes:,} are read")
    if (n_values := sum(data.count(mark) for mark in (b",", b"[", b"{"))) > max_values:
        raise JsonProblem(f"it has {n_values:,} values, and {max_values:,} are read")
    try:
        text = data.decode()
        hooks: dict[str, Any] = {
            "object_pairs_hook": _unique_json_keys,
            "parse_constant": _refuse_json_constant,
            "parse_int": _json_integer,
            "parse_float": _json_number,
        }
        value = json.loads(text, **hooks)
    except RecursionError as error:  # brackets nested thousands deep
        raise JsonProblem("it is nested too deeply") from error
    except JsonProblem:
        raise
    except UnicodeDecodeError as error:
        raise JsonProblem(f"it is not UTF-8: byte {error.start:,}") from error
    except ValueError as error:
        raise JsonProblem(f"it is not JSON: {error}") from error
    _check_json_depth(value, max_depth)
    if "\\u" in text:  # valid UTF-8 can hold a surrogate only as an escape
        _check_json_texts(value)
    return value


def _unique_json_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonProblem(f"the key {shown_name(twice)} is repeated")
    return found


def _refuse_json_constant(name: str) -> NoReturn:
    raise JsonProblem(f"it holds {name}, which is not a number")


def _json_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise JsonProblem(f"it holds an integer of {len(digits):,} digits")
    return int(digits)


def _json_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonProblem(f"it holds {text[:40]}, which is not a finite number")
    return value


def _check_json_depth(value: Any, max_depth: int) -> None:
    """Level by level, without recursion."""
    level = [value]
    for _ in range(max_depth + 1):
        level = [inner for each in level for inner in _json_values_inside(each) if isinstance(inner, dict | list)]
        if not level:
            return
    raise JsonProblem(f"it is nested too deeply: more than {max_depth} levels")


def _check_json_texts(value: Any) -> None:
    level = [value]
    while level:
        texts = [each for each in level if isinstance(each, str)] + [k for d in level if isinstance(d, dict) for k in d]
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise JsonProblem(f"it holds half a character (a surrogate): {shown_name(text)}") from error
        level = [inner for each in level for inner in _json_values_inside(each)]


def _json_values_inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        return iter(value.values())
    return iter(value if isinstance(value, list) else ())
