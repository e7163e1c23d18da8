"""The one reader of every YAML file that a user or a model brings: suites, tasks, budgets, recipes, model cards.

It returns plain data of bounded size: no aliases (a few expand to gigabytes), no tags, no repeated keys, numbers that
are finite and fit in 64 bits. A date stays a text, and so does `1:30`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.constructor import BaseConstructor, ConstructorError

MAX_BYTES: Final = 64 * 1024
MAX_NODES: Final = 20_000  # values and keys; reading so many takes a second
MAX_DEPTH: Final = 40
_MAX_INTEGER: Final = 1 << 63
_MAX_DIGITS: Final = 40
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_FUNCTION_TAG: Final = "!function"
_MERGE: Final = "<<"
_INTEGER: Final = re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT: Final = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?$|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
OnFunction = Callable[[str], Any]


class YamlProblem(ValueError):
    """YAML that cannot be used; the message says why, with the line where that is known."""


def read_strict_yaml(path: Path, *, max_bytes: int = MAX_BYTES, on_function: OnFunction | None = None) -> Any:
    """The one document in a file; see `load_strict_yaml`.

    Raises:
        YamlProblem: as `load_strict_yaml`.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return load_strict_yaml(stream.read(max_bytes + 1), max_bytes=max_bytes, on_function=on_function)


def load_strict_yaml(
    data: bytes | str, *, typed: bool = True, max_bytes: int = MAX_BYTES, on_function: OnFunction | None = None
) -> Any:
    """The one document in `data`; None where it is empty. Not `typed`: each scalar is its text, `no` stays "no".

    Args:
        on_function: what stands for `!function module.name`, lm-eval's tag; None: it is refused as every other tag.

    Raises:
        YamlProblem: too large, not YAML, nested too deep, or with an alias, a tag, a repeated key, a key that is not
            a text, or a number that is not finite or has too many digits.
    """
    if len(data) > max_bytes:
        raise YamlProblem(f"it is larger than {max_bytes // 1024} KiB")
    try:
        loader = (_Typed if typed else _Untyped)(data)
        loader.on_function = on_function
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise YamlProblem(_yaml_problem_words(error)) from error
    except RecursionError as error:
        raise YamlProblem("it is nested too deep") from error
    except (ValueError, OverflowError, AttributeError, TypeError, LookupError) as error:
        raise YamlProblem(str(error).splitlines()[0] if str(error) else "a value cannot be read") from error


def yaml_front_matter(text: str, max_characters: int) -> str | None:
    """The text between the first two lines of `---`, as on top of a model card; None where it does not begin so."""
    lines = text[:max_characters].removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").lstrip().splitlines()
    ends = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
    return "\n".join(lines[1 : ends[1]]) if len(ends) > 1 and ends[0] == 0 else None


def _yaml_problem_words(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    text = str(problem or error).splitlines()[0]
    return f"line {mark.line + 1}: {text}" if mark else text


def _refused_yaml(what: str, mark: Any) -> ConstructorError:
    return ConstructorError(None, None, what, mark)


def _refuse_yaml_event(event: Any, on_function: OnFunction | None) -> None:
    """Refuse aliases and tags: a tag turns a value into something other than it appears."""
    if isinstance(event, yaml.AliasEvent):
        raise _refused_yaml(f"the alias *{event.anchor}: write the value out", event.start_mark)
    tag = getattr(event, "tag", None)
    if tag not in (None, "!") and not (tag == _FUNCTION_TAG and on_function and isinstance(event, yaml.ScalarEvent)):
        raise _refused_yaml(f"the tag {tag}: leave it out", event.start_mark)


def _refuse_yaml_keys(node: Any) -> None:
    """Refuse repeated keys, of which the last would win silently, and keys that are not texts."""
    seen: set[str] = set()
    for key, _ in node.value:
        is_text = isinstance(key, yaml.ScalarNode) and key.tag == _TEXT_TAG
        if not is_text or (key.value == _MERGE and key.style is None):
            raise _refused_yaml("a key that is not a text: put it in quotes", key.start_mark)
        if key.value in seen:
            raise _refused_yaml(f"the key {key.value!r} is repeated", key.start_mark)
        seen.add(key.value)


class _Plain:
    """What both loaders refuse."""

    on_function: OnFunction | None = None
    nodes = depth = 0  # values read so far, and levels around the current one

    def compose_node(self: Any, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        _refuse_yaml_event(event, self.on_function)
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES:
            raise _refused_yaml(f"more than {MAX_NODES:,} values", event.start_mark)
        if self.depth > MAX_DEPTH:
            raise _refused_yaml(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)  # type: ignore[misc]
        self.depth -= 1
        return node

    def construct_mapping(self: Any, node: Any, deep: bool = False) -> Any:
        _refuse_yaml_keys(node)
        return BaseConstructor.construct_mapping(self, node, deep)  # SafeConstructor's own would follow `<<`

    def construct_function(self: Any, node: Any) -> Any:
        """What `!function` stands for."""
        assert self.on_function
        return self.on_function(node.value)


class _Typed(_Plain, yaml.SafeLoader):  # type: ignore[misc]  # a library without types
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (filled below)

    def construct_integer(self, node: Any) -> int:
        """A whole number of 64 bits."""
        value = int(self.construct_yaml_int(node)) if len(node.value) <= _MAX_DIGITS else _MAX_INTEGER
        if abs(value) >= _MAX_INTEGER:
            raise _refused_yaml("a number with too many digits", node.start_mark)
        return value

    def construct_finite(self, node: Any) -> float:
        """A number with a point."""
        value = float(self.construct_yaml_float(node))
        if not math.isfinite(value):
            raise _refused_yaml(f"{node.value[:_MAX_DIGITS]} is not a finite number", node.start_mark)
        return value


class _Untyped(_Plain, yaml.BaseLoader):  # type: ignore[misc]
    pass


_BOOLEAN: Final = re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_NOTHING: Final = re.compile(r"(?:~|null|Null|NULL|)$")
for _name, _pattern, _first in (
    ("bool", _BOOLEAN, "yYnNtTfFoO"), ("null", _NOTHING, ["~", "n", "N", ""]), ("float", _FLOAT, "-+0123456789."),
    ("int", _INTEGER, "-+0123456789"),
):
    _Typed.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
_Typed.add_constructor("tag:yaml.org,2002:int", _Typed.construct_integer)
_Typed.add_constructor("tag:yaml.org,2002:float", _Typed.construct_finite)
for _loader in (_Typed, _Untyped):
    _loader.add_constructor(_FUNCTION_TAG, _Plain.construct_function)
