"""Reduces a JSON schema to the part that a constrainer is known to enforce.

There are two constrainers: llama.cpp's converter from schema to grammar (over HTTP) and Outlines' from schema to
automaton (in process). Both silently ignore what they do not support. So every keyword is one of these:

- sent, if both were seen to enforce it, with patterns and formats in a form that both interpret alike;
- held back and checked on the finished answer (`multipleOf`, bounds of a fraction …);
- refused, if an answer generated without it would hardly ever pass, or a constrainer would misread it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from server.client.regex_subset import MAX_REPEATS, PatternRefused, normalise_client_regex

Constrainer = Literal["llama-server", "in process"]
Json = Mapping[str, Any]

_MAX_LISTED: Final = 1000  # largest range that is sent as an enum to a constrainer that ignores ranges
_INT64: Final = 2**63
_NOTES: Final = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator", "$comment",
    "$schema", "$id", "$defs",
))
_HELD_BACK: Final = frozenset((
    "multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "minProperties", "maxProperties",
    "contentEncoding", "contentMediaType", "contentSchema",
))
_BOUNDS: Final = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
_SENT: Final = frozenset((
    "type", "properties", "required", "items", "prefixItems", "minItems", "maxItems", "additionalProperties", "anyOf",
    "oneOf", "enum", "const", "$ref", "pattern", "format", "minLength", "maxLength",
))

_DATE: Final = (
    "[12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME: Final = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](Z|[+-](0[0-9]|1[0-3]):[0-5][0-9])"
_BYTE: Final = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL: Final = "[a-z0-9]{1,30}(-[a-z0-9]{1,30})?"
# To add a format: add a pattern that matches only valid values (it may miss rare ones, such as February 29). Other
# formats are held back and checked on the finished answer.
FORMATS: Final[dict[str, str]] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "email": rf"^[a-z0-9]{{1,30}}([._-][a-z0-9]{{1,30}})?@({_LABEL}\.){{1,2}}[a-z]{{2,6}}$",
    "ipv4": rf"^({_BYTE}\.){{3}}{_BYTE}$",
    "uuid": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    **{
        f"uuid{n}": f"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{n}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"
        for n in range(1, 9)
    },
}


class SchemaRefused(ValueError):
    """A part of a schema that cannot be enforced; `where` is its place, `reason` says why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"The schema cannot be enforced during generation: at {where}, {reason}.")
        self.where, self.reason = where, reason


def client_wire_schema(schema: Json, constrainer: Constrainer) -> dict[str, Any]:
    """The schema for the constrainer; the answer must still be checked against the original schema.

    Raises:
        SchemaRefused: a part of it can neither be enforced during generation nor sensibly checked afterwards.
    """
    definitions: Json = schema.get("$defs", {})
    # Definitions are renamed, because llama.cpp confuses names such as A_b and A__b.
    names = {f"#/$defs/{name}": f"#/$defs/d{number}" for number, name in enumerate(definitions)}
    writer = _Writer(constrainer, names)
    if constrainer == "in process":
        _refuse_schema_cycles(definitions)
    found = writer.node(schema, "#")
    if definitions:
        pairs = zip(names.values(), definitions.items(), strict=True)
        found["$defs"] = {own.rpartition("/")[2]: writer.node(node, f"#/$defs/{name}") for own, (name, node) in pairs}
    return found


class _Writer:
    def __init__(self, constrainer: Constrainer, names: Mapping[str, str]) -> None:
        self._constrainer, self._names = constrainer, names

    def node(self, schema: Any, where: str) -> dict[str, Any]:
        """Reduce one schema within the schema."""
        if not isinstance(schema, Mapping):
            raise SchemaRefused(where, f"{schema!r} is not a schema")
        said = {key: value for key, value in schema.items() if key not in _NOTES}
        if unknown := sorted(said.keys() - _SENT - _BOUNDS - _HELD_BACK):
            raise SchemaRefused(where, f"`{unknown[0]}` is misread or ignored")
        for key in ("$ref", "anyOf", "oneOf"):
            if key in said:
                return self._alone(key, said, where)
        if "enum" in said or "const" in said:
            return {key: said[key] for key in ("const", "enum") if key in said}
        if isinstance(said.get("type"), list):
            return {"anyOf": [self.node({**said, "type": kind}, where) for kind in said["type"]]}
        return self._typed(said, where)

    def _alone(self, key: str, said: Json, where: str) -> dict[str, Any]:
        """`$ref`, `anyOf` or `oneOf`, which must be the only keyword: constrainers ignore the others."""
        if beside := sorted(said.keys() - {key} - ({"type"} if key != "$ref" else set())):
            raise SchemaRefused(where, f"`{beside[0]}` beside `{key}` is ignored")
        if key != "$ref":
            options = [self.node(option, f"{where}/{key}/{n}") for n, option in enumerate(said[key])]
            return {"anyOf": options}
        if said[key] not in self._names:
            raise SchemaRefused(where, f"`$ref` to {said[key]!r} is not in `$defs`")
        return {"$ref": self._names[said[key]]}

    def _typed(self, said: Json, where: str) -> dict[str, Any]:
        kind = said.get("type")
        if kind == "object":
            return self._object(said, where)
        if kind == "array":
            return self._array(said, where)
        if kind == "string":
            return _string_schema_subset(said, where)
        if kind == "integer":
            return self._integer(said, where)
        if kind in ("number", "boolean", "null"):
            return {"type": kind}
        if kind is None and not said and self._constrainer == "llama-server":
            return {}
        raise SchemaRefused(where, "any value is allowed" if kind is None else f"the type {kind!r} is not known")

    def _object(self, said: Json, where: str) -> dict[str, Any]:
        properties = {
            name: self.node(node, f"{where}/properties/{name}") for name, node in said.get("properties", {}).items()
        }
        if missing := [name for name in said.get("required", ()) if name not in properties]:
            raise SchemaRefused(where, f"`required` names {missing[0]!r}, which is not a property")
        more = said.get("additionalProperties", False)
        more = more if isinstance(more, bool) else self.node(more, f"{where}/additionalProperties")
        if more is True and self._constrainer == "in process":
            more = False
        found = {"type": "object", "additionalProperties": more, "required": list(said.get("required", ()))}
        return {**found, "properties": properties} if properties else found

    def _array(self, said: Json, where: str) -> dict[str, Any]:
        if "prefixItems" in said:
            return self._tuple(said, where)
        found: dict[str, Any] = {"type": "array", "items": self.node(said.get("items", {}), f"{where}/items")}
        return found | {key: said[key] for key in ("minItems", "maxItems") if 0 <= said.get(key, -1) <= MAX_REPEATS}

    def _tuple(self, said: Json, where: str) -> dict[str, Any]:
        items = [self.node(item, f"{where}/prefixItems/{n}") for n, item in enumerate(said["prefixItems"])]
        if "items" in said or not said.get("minItems", 0) <= len(items) <= said.get("maxItems", len(items)):
            raise SchemaRefused(where, "further `items` after `prefixItems` are misread")
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}

    def _integer(self, said: Json, where: str) -> dict[str, Any]:
        low, high = _integer_schema_bounds(said)
        if low is not None and high is not None:
            if low > high:
                raise SchemaRefused(where, f"no integer is at least {low} and at most {high}")
            if high - low < _MAX_LISTED and ("multipleOf" in said or self._constrainer == "in process"):
                return _integers_as_enum(said, low, high, where)
        if self._constrainer == "in process":  # Outlines ignores bounds
            return {"type": "integer"}
        bounds = {"minimum": low, "maximum": high}
        return {"type": "integer"} | {k: v for k, v in bounds.items() if v is not None and abs(v) < _INT64}


def _string_schema_subset(said: Json, where: str) -> dict[str, Any]:
    """With a pattern, the lengths are held back: both constrainers ignore one or the other."""
    pattern = said.get("pattern") or FORMATS.get(said.get("format", ""))
    if pattern is not None:
        try:
            return {"type": "string", "pattern": normalise_client_regex(pattern)}
        except PatternRefused as error:
            reason = f"the pattern {error.pattern!r} cannot be enforced: {error.reason}"
            raise SchemaRefused(where, reason) from error
    lengths = {key: said[key] for key in ("minLength", "maxLength") if 0 <= said.get(key, -1) <= MAX_REPEATS}
    return {"type": "string", **lengths}


def _integers_as_enum(said: Json, low: int, high: int, where: str) -> dict[str, Any]:
    """A range as an enum of its integers, which both constrainers enforce, unlike ranges and multiples."""
    step = said.get("multipleOf", 1)
    values = [value for value in range(low, high + 1) if value % step == 0]
    if not values:
        raise SchemaRefused(where, f"no integer from {low} to {high} is a multiple of {step}")
    return {"enum": values}


def _integer_schema_bounds(said: Json) -> tuple[int | None, int | None]:
    """The smallest and the largest integer of the range; None: no bound."""
    lows = [-(-said[key] // 1) for key in ("minimum",) if key in said]
    lows += [said[key] // 1 + 1 for key in ("exclusiveMinimum",) if key in said]
    highs = [said[key] // 1 for key in ("maximum",) if key in said]
    highs += [-(-said[key] // 1) - 1 for key in ("exclusiveMaximum",) if key in said]
    return (int(max(lows)) if lows else None), (int(min(highs)) if highs else None)


def _refuse_schema_cycles(definitions: Json) -> None:
    """Refuse recursive definitions: Outlines unrolls them to three levels, and is wrong below."""
    leads = {name: {ref.rpartition("/")[2] for ref in _schema_refs(node)} for name, node in definitions.items()}
    for name in definitions:
        seen: set[str] = set()
        todo = set(leads[name])
        while todo:
            seen |= todo
            todo = {further for one in todo for further in leads.get(one, ())} - seen
        if name in seen:
            raise SchemaRefused(f"#/$defs/{name}", "it contains itself, which can be enforced over HTTP only")


def _schema_refs(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _schema_refs(part)
