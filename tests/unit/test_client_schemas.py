"""What of a schema is sent, what is held back, what is refused; and that no wrong answer passes."""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from server.client.client import Sampling
from server.client.schema_subset import FORMATS, SchemaRefused, client_wire_schema
from server.client.structured import AnswerCut, AnswerInvalid, _Task, parse_client_answer
from server.examples.client_profile import ClientProfile


def in_object(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": part}, "required": ["x"]}


def sent(part: dict[str, Any], constrainer: Any = "llama-server") -> dict[str, Any]:
    return client_wire_schema(in_object(part), constrainer)["properties"]["x"]


@pytest.mark.parametrize(("part", "wanted"), [
    ({"type": "string", "pattern": r"^\d$"}, {"type": "string", "pattern": "^[0-9]$"}),
    ({"type": "string", "pattern": "^a+$", "minLength": 3}, {"type": "string", "pattern": "^(?:a)+$"}),
    ({"type": "string", "maxLength": 5000}, {"type": "string"}),
    ({"type": "string", "format": "uri"}, {"type": "string"}),
    ({"type": "number", "minimum": 0, "multipleOf": 0.5}, {"type": "number"}),
    ({"type": "integer", "exclusiveMinimum": 2, "maximum": 9.5}, {"type": "integer", "minimum": 3, "maximum": 9}),
    ({"type": "integer", "minimum": 1, "maximum": 9, "multipleOf": 4}, {"enum": [4, 8]}),
    ({"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
    ({"oneOf": [{"type": "null"}, {"const": 1}]}, {"anyOf": [{"type": "null"}, {"const": 1}]}),
    ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, {"type": "array", "items": {"type": "null"}}),
])  # fmt: skip
def test_only_what_the_server_holds_is_sent(part: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sent(part) == wanted


def test_in_process_a_short_range_is_a_list_because_bounds_are_passed_over_there() -> None:
    assert sent({"type": "integer", "minimum": 3, "maximum": 5}, "in process") == {"enum": [3, 4, 5]}
    assert sent({"type": "integer", "minimum": 3}, "in process") == {"type": "integer"}


@pytest.mark.parametrize(("part", "reason"), [
    ({"allOf": [{"type": "null"}]}, "`allOf`"), ({"not": {"type": "null"}}, "`not`"), ({"if": {}, "then": {}}, "`if`"),
    ({"type": "object", "patternProperties": {"a": {}}}, "`patternProperties`"),
    ({"type": "object", "propertyNames": {"pattern": "a"}}, "`propertyNames`"),
    ({"anyOf": [{"type": "null"}], "minLength": 3}, "`minLength` beside `anyOf`"),
    ({"$ref": "https://example.org/schema"}, "in `.defs`"), ({"type": "string", "pattern": "(?=a)b"}, "looks ahead"),
    ({"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "null"}}, "after `prefixItems`"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "no integer"), ({"type": "object", "required": ["y"]}, "'y'"),
    ({"type": "integer", "minimum": 1, "maximum": 3, "multipleOf": 7}, "multiple of 7"), ({"unheard": 1}, "`unheard`"),
])  # fmt: skip
def test_what_would_be_misread_is_refused_with_its_place_and_the_reason(part: dict[str, Any], reason: str) -> None:
    with pytest.raises(SchemaRefused, match=reason) as caught:
        sent(part)
    assert caught.value.where.startswith("#/properties/x")


class Node(BaseModel):
    child: Node | None = None


class Same(BaseModel):
    class A_b(BaseModel):  # noqa: N801  (a name that llama.cpp confuses with the next)
        x: Literal[1]

    class A__b(BaseModel):  # noqa: N801
        x: Literal[2]

    one: A_b
    two: A__b


def test_a_schema_that_contains_itself_is_held_over_http_only() -> None:
    assert client_wire_schema(Node.model_json_schema(), "llama-server")["$ref"] == "#/$defs/d0"
    with pytest.raises(SchemaRefused, match="contains itself"):
        client_wire_schema(Node.model_json_schema(), "in process")


def test_definitions_get_names_that_cannot_be_confused() -> None:
    assert sorted(client_wire_schema(Same.model_json_schema(), "llama-server")["$defs"]) == ["d0", "d1"]


@pytest.mark.commands
@pytest.mark.parametrize("name", FORMATS)
def test_whatever_a_formats_pattern_matches_has_the_format(name: str) -> None:
    class Holder(BaseModel):
        x: Annotated[str, Field(json_schema_extra={"format": name})]

    @settings(max_examples=30)
    @given(st.from_regex(FORMATS[name], fullmatch=True))
    def check(text: str) -> None:
        assert parse_client_answer(Holder, Holder.model_json_schema(), json.dumps({"x": text}))[1] == ""

    check()


class Strict(BaseModel):
    n: Annotated[int, Field(ge=1, le=9)]
    day: date

    @model_validator(mode="after")
    def _no_seven(self) -> Strict:
        assert self.n != 7, "seven is taken"
        return self


@pytest.mark.parametrize(("text", "words"), [
    ('{"n": "5", "day": "2024-01-01"}', r"\$\.n: '5' is not of type"), ('{"n": 10, "day": "2024-01-01"}', "maximum"),
    ('{"n": 5, "day": "2024-02-30"}', "2024-02-30"), ('{"n": 5}', "'day' is a required"), ('{"n": 5,', "not JSON"),
    ('{"n": 7, "day": "2024-01-01"}', "seven is taken"),
])  # fmt: skip
def test_an_answer_that_breaks_the_schema_or_the_model_is_told_by_place_and_value(text: str, words: str) -> None:
    import re

    found, broken = parse_client_answer(Strict, Strict.model_json_schema(), text)
    assert found is None
    assert re.search(words, broken)


GOOD = '{"name": "Anna Price", "phone": "(503) 555-0142", "zip_code": "97205"}'
TASK = _Task.of(ClientProfile, "llama-server")


def test_a_wrong_answer_is_asked_for_again_with_the_reason_and_another_seed() -> None:
    prompts: list[str] = []
    seeds: list[int | None] = []

    def ask(words: str, how: Sampling) -> tuple[str, str]:
        prompts.append(words)
        seeds.append(how.seed)
        return (GOOD if len(prompts) == 3 else GOOD.replace("97205", "972051")), "stop"

    assert TASK.solve(ask, "Who?", Sampling(seed=4), 3).zip_code == "97205"
    assert seeds == [4, 5, 6]
    assert "$.zip_code" in prompts[1] and "972051" in prompts[1]


def test_after_the_last_try_the_reason_is_told() -> None:
    with pytest.raises(AnswerInvalid, match=r"4 answers broke ClientProfile; .*zip_code"):
        TASK.solve(lambda _words, _how: (GOOD.replace("97205", "9"), "stop"), "Who?", Sampling(), 3)


def test_an_answer_that_was_cut_is_never_taken_for_whole() -> None:
    with pytest.raises(AnswerCut, match="cut at 512 tokens"):
        TASK.solve(lambda _words, _how: (GOOD, "length"), "Who?", Sampling(), 3)
