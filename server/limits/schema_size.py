"""Measures the work that converting a JSON schema to a grammar costs, following every reference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Measure = tuple[str, float]  # a name in request_limits.json, and the value to compare with that limit
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DEFINITIONS: Final = ("$defs", "definitions")
_ONE: Final = (
    "items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains", "not",
    "if", "then", "else", "propertyNames",
)  # fmt: skip
_BRANCHES: Final = ("anyOf", "oneOf", "allOf")
_LISTED: Final = (*_BRANCHES, "prefixItems", "items")
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class SchemaError(ValueError):
    """A schema that cannot be converted to a grammar, whatever its size."""


def measure_schema_size(schema: Any, most_expanded: int) -> Iterator[Measure]:
    """Every value of a schema that has a limit.

    Args:
        schema: any JSON whose depth was checked.
        most_expanded: the largest number of schemas to visit when every reference is followed; the walk stops after it.

    Raises:
        SchemaError: a reference has no target, is not local, or refers to itself without a property or items between.
        RecursionError: references are nested too deeply.
    """
    n_branches = n_options = 0
    for one in _subschemas(schema):
        n_options += len(one["enum"]) if isinstance(one.get("enum"), list) else 0
        n_branches += sum(len(one[name]) for name in _BRANCHES if isinstance(one.get(name), list))
        n_branches += len(one["type"]) if isinstance(one.get("type"), list) else 0
        yield from _measures_of_schema(one)
    yield "schema_unions", n_branches
    yield "schema_enums", n_options
    expansion = _Expansion(schema, most_expanded)
    yield from expansion.follow(schema, 1)
    yield "schema_expanded", expansion.n


def schema_regexes(schema: Any) -> Iterator[str]:
    """The regular expressions in a schema."""
    yield from (one["pattern"] for one in _subschemas(schema) if isinstance(one.get("pattern"), str))


def _schema_children(schema: Mapping[str, Any], *, definitions: bool) -> Iterator[tuple[str, Any]]:
    """The direct subschemas of a schema, each with its keyword."""
    for name in _NAMED:
        if isinstance(named := schema.get(name), dict) and (definitions or name not in _DEFINITIONS):
            yield from ((name, inner) for inner in named.values())
    for name in _LISTED:
        if isinstance(listed := schema.get(name), list):
            yield from ((name, inner) for inner in listed)
    yield from ((name, schema[name]) for name in _ONE if isinstance(schema.get(name), dict))


def _subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and all its subschemas, including definitions; references are not followed."""
    left = [schema]
    while left:
        if isinstance(one := left.pop(), dict):
            yield one
            left.extend(inner for _name, inner in _schema_children(one, definitions=True))


def _measures_of_schema(schema: Mapping[str, Any]) -> Iterator[Measure]:
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict):
        yield "schema_properties", len(properties)
        asked = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        yield "schema_optional", len(properties.keys() - asked)
        yield from (("schema_string_chars", len(name)) for name in properties)
    if isinstance(options := schema.get("enum"), list):
        yield "schema_enum", len(options)
        yield from (("schema_string_chars", _n_schema_characters(one)) for one in options)
    if "const" in schema:
        yield "schema_string_chars", _n_schema_characters(schema["const"])
    yield from (("schema_length", value) for value in _schema_numbers(schema, "minLength", "maxLength"))
    yield from (("schema_number", abs(value)) for value in _schema_numbers(schema, *_NUMBERS))


def _n_schema_characters(value: Any) -> int:
    """The length of a value as JSON; of a string without its quotation marks."""
    return len(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _schema_numbers(schema: Mapping[str, Any], *names: str) -> Iterator[float]:
    for name in names:
        value = schema.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value


@dataclass
class _Expansion:
    """A walk that follows every reference on every path, and each cycle once."""

    root: Any
    most: int
    n: int = 0
    _way: list[int] = field(default_factory=list)  # targets of the references followed from the root to here
    _in_place: list[int] = field(default_factory=list)  # those of them that apply to the same value of an answer

    def __post_init__(self) -> None:
        self._way.append(id(self.root))
        self._in_place.append(id(self.root))

    def follow(self, schema: Any, n_items: float) -> Iterator[Measure]:
        """Walk a schema; `n_items` is how often it may occur in an answer, given the arrays around it."""
        if not isinstance(schema, dict) or self.n > self.most:
            return
        self.n += 1
        items = max((1, *_schema_numbers(schema, "minItems", "maxItems")))
        yield "schema_items", n_items * items
        if isinstance(reference := schema.get("$ref"), str):
            yield from self._refer(self._target(reference), n_items)
        for name, inner in _schema_children(schema, definitions=False):
            if name in _BRANCHES:
                yield from self.follow(inner, n_items)
                continue
            outside, self._in_place = self._in_place, []
            yield from self.follow(inner, n_items * items if name in {"items", "prefixItems", "contains"} else n_items)
            self._in_place = outside

    def _refer(self, target: Any, n_items: float) -> Iterator[Measure]:
        if id(target) in self._in_place:
            raise SchemaError("a reference refers to itself")
        if id(target) in self._way:
            return
        self._way.append(id(target))
        self._in_place.append(id(target))
        yield from self.follow(target, n_items)
        self._in_place.pop()
        self._way.pop()

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise SchemaError(f"a reference is not local: {reference[:80]!r}")
        found = self.root
        for step in reference[1:].strip("/").split("/") if reference != "#" else ():
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise SchemaError(f"a reference has no target: {reference[:80]!r}")
            found = found[key]
        return found
