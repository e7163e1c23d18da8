"""JSON-schema conformance of a served model: the schemas, how an answer is judged, and the rate with its interval.

The server converts a schema to a grammar that constrains its output, so nearly every answer must conform, however
small the model. An answer cut by `max_tokens` is a separate kind of failure: it does not break the schema, but it is
not complete JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import jsonschema
from jsonschema import Draft202012Validator, FormatChecker

from quantyard.formatting.numbers import format_percent, format_score_interval
from quantyard.metrics.intervals import wilson_interval
from quantyard.protocol.api_tests import SCHEMA_LIMIT, AnswerKind, SchemaFailure, SchemaRate
from quantyard.protocol.estimates import Interval

Schema = dict[str, Any]
FORMATS: Final = FormatChecker(("date", "uuid", "ipv4"))


@FORMATS.checks("date-time", raises=ValueError)
def _is_schema_date_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


# ---- judging -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SchemaVerdict:
    """The verdict on one answer."""

    kind: AnswerKind
    finding: str = ""


def judge_schema_text(text: str, schema: Schema) -> SchemaVerdict:
    """Whether a text is JSON that conforms to a schema, formats included."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return SchemaVerdict("not JSON", f"{error}: {text[:80]!r}")
    validator = Draft202012Validator(schema, format_checker=FORMATS)
    wrong = jsonschema.exceptions.best_match(validator.iter_errors(value))
    return (
        SchemaVerdict("valid")
        if wrong is None
        else SchemaVerdict("invalid", f"{wrong.json_path}: {wrong.message[:160]}")
    )


def judge_schema_answer(text: str, finish_reason: str, schema: Schema) -> SchemaVerdict:
    """The same for an answer; one with finish_reason "length" is always `cut`."""
    if finish_reason == "length":
        return SchemaVerdict("cut", f"max_tokens ended it after {text[-60:]!r}")
    return judge_schema_text(text, schema)


def schema_rate(verdicts: Mapping[str, SchemaVerdict], request_form: str) -> SchemaRate:
    """The rate of valid answers, and the names of the schemas that failed."""
    n, n_valid = len(verdicts), sum(v.kind == "valid" for v in verdicts.values())
    interval = wilson_interval(n_valid, n)
    failures = [
        SchemaFailure(schema_name=name, kind=verdict.kind, finding=verdict.finding)
        for name, verdict in verdicts.items() if verdict.kind != "valid"
    ]  # fmt: skip
    return SchemaRate(
        n=n, n_valid=n_valid, n_cut=sum(v.kind == "cut" for v in verdicts.values()), rate=n_valid / n if n else 0.0,
        low=interval.low, high=interval.high, gate=SCHEMA_LIMIT, request_form=request_form, failures=tuple(failures),
    )  # fmt: skip


def api_schema_rate_text(rate: SchemaRate) -> str:
    """The rate in one line."""
    named = ", ".join(f"{failure.schema_name} ({failure.kind})" for failure in rate.failures)
    share = format_score_interval(Interval(value=rate.rate, low=rate.low, high=rate.high), "share")
    conforming = f"{rate.n_valid} of {rate.n} answers conform, {share}; the limit is {format_percent(rate.gate, 0)}"
    return f"{conforming}; not: {named}" if named else conforming


# ---- the schemas -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SchemaCase:
    """One schema, and a prompt for an answer in it."""

    name: str
    prompt: str
    schema: Schema


def _object(optional: Iterable[str] = (), **properties: Schema) -> Schema:
    """An object with exactly these properties, all required except those in `optional`."""
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _text(longest: int = 16, shortest: int = 1) -> Schema:
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Schema, least: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _pattern(pattern: str) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$"}


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _format(name: str) -> Schema:
    return {"type": "string", "format": name}


_BOOL: Final[Schema] = {"type": "boolean"}
_NULL: Final[Schema] = {"type": "null"}
_COLOUR: Final[Schema] = {"enum": ["red", "green", "blue"]}
_POINT: Final = _object(x=_whole(0, 9), y=_whole(0, 9))

# To add a schema: add a name, a prompt of one line, and the schema. Bound its strings and lists, or a small model
# rambles until max_tokens cuts it; keep it small, since every token is generated on the user's CPU.
CASES: Final = (
    # objects
    SchemaCase("one-string", "Name a city.", _object(city=_text())),
    SchemaCase("person", "Ada is 36 years old.", _object(name=_text(), age=_whole(0, 150))),
    SchemaCase("three-types", "A red car, 2 doors, not sold.",
        _object(colour=_text(8), doors=_whole(1, 5), sold=_BOOL)),
    SchemaCase("optional-left-out", "A book named Emma.", _object(("year",), title=_text(), year=_whole(1500, 2100))),
    SchemaCase("all-optional", "A tea without sugar.", _object(("sugar", "milk"), sugar=_BOOL, milk=_BOOL)),
    SchemaCase("no-properties", "Answer with an empty object.", _object()),
    SchemaCase("names-with-signs", "Rate it.", _object(**{"a-b": _whole(1, 5), "c d": _whole(1, 5)})),
    SchemaCase("unicode-name", "Wie alt?", _object(größe=_whole(1, 99))),
    # nested
    SchemaCase("nested", "Where is the Louvre?", _object(place=_object(city=_text(), country=_text()))),
    SchemaCase("nested-three", "A deep box.", _object(a=_object(b=_object(c=_whole(0, 9))))),
    SchemaCase("object-of-lists", "Two numbers, one flag.", _object(n=_list(_whole(0, 9), 2, 2), f=_list(_BOOL, 1, 1))),
    SchemaCase("siblings", "From 1,2 to 3,4.", _object(start=_POINT, end=_POINT)),
    # arrays
    SchemaCase("list-exact", "Three digits.", _object(digits=_list(_whole(0, 9), 3, 3))),
    SchemaCase("list-range", "Some fruit.", _object(fruit=_list(_text(10), 1, 3))),
    SchemaCase("list-at-most", "Perhaps a number.", _object(n=_list(_whole(0, 99), 0, 2))),
    SchemaCase("list-of-objects", "Two points.", _object(points=_list(_POINT, 2, 2))),
    SchemaCase("list-of-lists", "A 2 by 2 matrix.", _object(rows=_list(_list(_whole(0, 9), 2, 2), 2, 2))),
    SchemaCase("list-of-enum", "Two colours.", _object(colours=_list(_COLOUR, 2, 2))),
    SchemaCase("list-at-top", "Three digits, as a list.", _list(_whole(0, 9), 3, 3)),
    SchemaCase("tuple", "A name and a number.", _object(pair={"prefixItems": [_text(8), _whole(0, 9)], "type": "array",
                                                       "minItems": 2, "maxItems": 2})),
    # enum and const
    SchemaCase("enum", "The sky is blue. Its colour?", _object(colour=_COLOUR)),
    SchemaCase("enum-numbers", "Choose a size.", _object(size={"enum": [1, 2, 4, 8]})),
    SchemaCase("enum-mixed", "Choose one.", _object(value={"enum": ["a", 1, True, None]})),
    SchemaCase("enum-at-top", "Is water wet?", {"enum": ["yes", "no"]}),
    SchemaCase("enum-with-quotes", "Choose one.", _object(q={"enum": ['say "hi"', "back\\slash", "tab\t"]})),
    SchemaCase("const", "A cat.", _object(kind={"const": "cat"}, legs=_whole(0, 8))),
    SchemaCase("const-number", "Version two.", _object(version={"const": 2})),
    # alternatives
    SchemaCase("any-string-or-number", "A room number.", _object(room=_any(_text(6), _whole(0, 999)))),
    SchemaCase("any-object", "A circle of radius 3.",
        _any(_object(r=_whole(0, 9)), _object(w=_whole(0, 9), h=_whole(0, 9)))),
    SchemaCase("any-tagged", "A dog.", _object(pet=_any(_object(kind={"const": "dog"}, barks=_BOOL),
                                                 _object(kind={"const": "cat"}, lives=_whole(1, 9))))),
    SchemaCase("one-of", "True or a word.", _object(v={"oneOf": [_BOOL, _text(8)]})),
    SchemaCase("nullable", "Nobody knows his name.", _object(name=_any(_text(), _NULL))),
    SchemaCase("type-list", "A number or nothing.",
        _object(v={"type": ["integer", "null"], "minimum": 0, "maximum": 99})),
    SchemaCase("all-of", "Ada, 36.", {"allOf": [
        {"type": "object", "properties": {"name": _text()}, "required": ["name"]},
        {"type": "object", "properties": {"age": _whole(0, 150)}, "required": ["age"]},
    ]}),
    # references
    SchemaCase("defs", "Two points.",
        {"$defs": {"p": _POINT}, **_object(a={"$ref": "#/$defs/p"}, b={"$ref": "#/$defs/p"})}),
    SchemaCase("defs-in-list", "A point.", {"$defs": {"p": _POINT}, **_object(all=_list({"$ref": "#/$defs/p"}, 1, 2))}),
    SchemaCase("defs-chain", "A small box.", {"$defs": {"n": _whole(0, 9), "box": _object(n={"$ref": "#/$defs/n"})},
                                        **_object(box={"$ref": "#/$defs/box"})}),
    SchemaCase("definitions", "A colour.", {"definitions": {"c": _COLOUR}, **_object(c={"$ref": "#/definitions/c"})}),
    SchemaCase("tree", "A tree of depth one.", {"$defs": {"t": _object(("next",), v=_whole(0, 9), next=_any(
        _NULL, _object(v=_whole(0, 9))))}, **_object(tree={"$ref": "#/$defs/t"})}),
    # strings
    SchemaCase("pattern-digits", "A zip code.", _object(zip=_pattern("[0-9]{5}"))),
    SchemaCase("pattern-plate", "A licence plate.", _object(plate=_pattern("[A-Z]{2}-[0-9]{3}"))),
    SchemaCase("pattern-choice", "A level.", _object(level=_pattern("(low|mid|high)"))),
    SchemaCase("pattern-optional", "A signed digit.", _object(n=_pattern("[+-]?[0-9]"))),
    SchemaCase("pattern-version", "A version.", _object(version=_pattern("[0-9]{1,2}\\.[0-9]{1,2}"))),
    SchemaCase("pattern-phone", "A phone number.", _object(phone=_pattern("[0-9]{3}-[0-9]{4}"))),
    SchemaCase("length-exact", "Three letters.", _object(code=_text(3, 3))),
    SchemaCase("length-range", "A short word.", _object(word=_text(8, 4))),
    SchemaCase("date", "Christmas of 2023.", _object(day=_format("date"))),
    SchemaCase("date-time", "Noon of 1 May 2024, in UTC.", _object(at=_format("date-time"))),
    SchemaCase("uuid", "An identifier.", _object(id=_format("uuid"))),
    SchemaCase("date-in-list", "Two days of May 2024.", _object(days=_list(_format("date"), 2, 2))),
    # numbers
    SchemaCase("range", "A percentage.", _object(percent=_whole(0, 100))),
    SchemaCase("range-negative", "A cold day, in degrees.", _object(celsius=_whole(-40, -1))),
    SchemaCase("range-large", "A year.", _object(year=_whole(1900, 2099))),
    SchemaCase("range-exclusive", "A die.",
        _object(die={"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 7})),
    SchemaCase("number", "The value of pi, roughly.", _object(value={"type": "number"})),
    # the rest
    SchemaCase("booleans", "Fire is hot. Ice is not.", _object(fire=_BOOL, ice=_BOOL)),
    SchemaCase("null", "Nothing.", _object(nothing=_NULL)),
    SchemaCase("additional-typed", "Ages by name.", {"type": "object", "properties": {"Ada": _whole(0, 150)},
                                               "required": ["Ada"], "additionalProperties": False, "title": "Ages"}),
    SchemaCase("described", "A small order.", _object(item={**_text(), "description": "what is bought"},
                                                count={**_whole(1, 9), "default": 1})),
)  # fmt: skip
