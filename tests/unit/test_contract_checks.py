"""How answers of a served model are judged: schemas, formats, the interval, streams, and the report."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from quantyard.protocol.api_tests import SCHEMA_LIMIT, CheckRecord, ContractReport
from server.api_checks.schemas import (
    CASES,
    SchemaCase,
    SchemaVerdict,
    api_schema_rate_text,
    judge_schema_answer,
    judge_schema_text,
    schema_rate,
)  # fmt: skip
from server.api_checks.session import BrokenPromise, read_api_stream
from server.api_checks.table import CHECKS

BY_NAME = {case.name: case.schema for case in CASES}
WRONG = {
    "person": {"name": "Ada", "age": 151}, "optional-left-out": {"year": 1800}, "no-properties": {"a": 1},
    "list-exact": {"digits": [1, 2]}, "list-range": {"fruit": []}, "enum": {"colour": "pink"}, "const": {"kind": "dog"},
    "any-tagged": {"pet": {"kind": "dog", "lives": 9}}, "defs": {"a": {"x": 1, "y": 2}, "b": {"x": 10, "y": 0}},
    "pattern-digits": {"zip": "1234"}, "length-exact": {"code": "ab"}, "date": {"day": "2023-02-30"},
    "date-time": {"at": "2024-05-01T12:00:00"}, "uuid": {"id": "no-uuid"}, "range-negative": {"celsius": 0},
    "nullable": {"name": 1}, "booleans": {"fire": "yes", "ice": False}, "one-of": {"v": 7}, "tuple": {"pair": [1, "a"]},
    "nested": {"place": {"city": "Paris"}}, "all-of": {"name": "Ada"}, "null": {"nothing": 0},
}  # fmt: skip


def test_there_are_at_least_fifty_schemas_and_no_two_of_a_name() -> None:
    assert len(CASES) >= 50 and len(BY_NAME) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_schema_is_one(case: SchemaCase) -> None:
    Draft202012Validator.check_schema(case.schema)


def test_the_schemas_use_every_keyword_that_is_promised() -> None:
    text = json.dumps([case.schema for case in CASES])
    promised = (
        "enum", "const", "anyOf", "$ref", "$defs", "pattern", "minimum", "maximum", "minItems", "maxItems",
        "minLength", "maxLength", "format", "additionalProperties", "boolean", "null", "integer", "array",
    )  # fmt: skip
    assert [word for word in promised if f'"{word}"' not in text] == []


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_breaks_its_schema_is_invalid(name: str) -> None:
    verdict = judge_schema_text(json.dumps(WRONG[name]), BY_NAME[name])
    assert verdict.kind == "invalid" and verdict.finding.startswith("$")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("date", {"day": "2024-02-29"}), ("date-time", {"at": "2024-05-01T12:00:00Z"}),
        ("optional-left-out", {"title": "E"}),
    ],
)
def test_an_answer_that_conforms_is_valid(name: str, answer: object) -> None:
    assert judge_schema_text(json.dumps(answer), BY_NAME[name]) == SchemaVerdict("valid")


def test_text_around_the_json_is_not_json() -> None:
    assert judge_schema_text('Here: {"city": "Rome"}', BY_NAME["one-string"]).kind == "not JSON"


def test_an_answer_that_max_tokens_ended_is_cut_even_if_it_conforms() -> None:
    assert judge_schema_answer('{"city": "Rome"}', "length", BY_NAME["one-string"]).kind == "cut"
    assert judge_schema_answer('{"city": "Rome"}', "stop", BY_NAME["one-string"]).kind == "valid"


def test_the_rate_counts_cut_answers_as_failures_of_their_own_and_names_every_failure() -> None:
    rate = schema_rate(
        {"a": SchemaVerdict("valid"), "b": SchemaVerdict("cut", "…"), "c": SchemaVerdict("invalid", "$: no")},
        "json_schema",
    )
    assert (rate.n, rate.n_valid, rate.n_cut) == (3, 1, 1) and rate.gate == SCHEMA_LIMIT
    assert [(failure.schema_name, failure.kind) for failure in rate.failures] == [("b", "cut"), ("c", "invalid")]
    said = "1 of 3 answers conform, 33.3 % (6.1 to 79.2); the limit is 90 %; not: b (cut), c (invalid)"
    assert api_schema_rate_text(rate) == said


def test_a_stream_adds_up_thoughts_text_reason_and_usage() -> None:
    chunks = (
        {"choices": [{"delta": {"role": "assistant", "content": None}}]},
        {"choices": [{"delta": {"reasoning_content": "Hm. "}}]}, {"choices": [{"delta": {"content": "Yes"}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {"total_tokens": 9}},
    )  # fmt: skip
    lines = "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks)
    found = read_api_stream(": ping\n" + lines + "data: [DONE]\n\n")
    assert (found.text, found.finish_reason, found.usage) == ("Hm. Yes", "stop", {"total_tokens": 9})
    assert found.is_done and not read_api_stream(lines).is_done


@pytest.mark.parametrize("event", ["{half", '{"error": {"message": "out of slots"}}'])
def test_a_broken_stream_is_a_broken_promise(event: str) -> None:
    with pytest.raises(BrokenPromise):
        read_api_stream(f"data: {event}\n\n")


def test_every_check_has_a_name_of_its_own_and_a_promise() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.promise for check in CHECKS)


def test_what_is_not_supported_does_not_fail_a_report_and_what_failed_does() -> None:
    records = [_record("passed"), _record("not supported")]
    assert _report(*records).passed
    assert not _report(*records, _record("failed")).passed
    assert not _report().passed  # nothing was checked


def test_a_report_is_the_same_after_it_was_written_and_read() -> None:
    report = _report(_record("failed"))
    assert ContractReport.model_validate_json(report.model_dump_json()) == report


def _record(status: str) -> CheckRecord:
    return CheckRecord(name="a", promise="b", status=status, finding="c", duration_s=0.1)  # type: ignore[arg-type]


def _report(*records: CheckRecord) -> ContractReport:
    return ContractReport(server="s", model="m", checks=records, duration_s=1.0)
