"""What a request to the local server may ask for, held against the table that the proxy is held against too."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from server.api_checks.schemas import CASES
from server.api_checks.structured_output import TOOL_PARAMETERS
from server.limits.grammar_size import GrammarSizes, NotRead, read_gbnf_grammar, read_regex_grammar
from server.limits.request_rules import (
    LIMITS,
    LIMITS_FILE,
    TooMuch,
    check_grammar_limits,
    check_request_limits,
    check_schema_limits,
    check_text_limit,
    parse_request_body,
)
from tests.hostile.api_requests import (
    HOSTILE,
    JSON_GRAMMAR,
    ORDINARY,
    SUM_GRAMMAR,
    Case,
    data_url,
    nested,
    picture,
    png_head,
)

OF_THE_BODY = [case for case in (*ORDINARY, *HOSTILE) if case.method == "POST" and case.status in {200, 400}]


def _refusal(case: Case) -> str:
    try:
        asked = parse_request_body(case.sent())
        check_request_limits(asked)
        if case.path == "/tokenize":
            check_text_limit(asked["content"])
    except TooMuch as error:
        return str(error)
    return ""


@pytest.mark.commands
@pytest.mark.parametrize("case", OF_THE_BODY, ids=str)
def test_every_request_of_the_table_passes_or_is_refused_as_it_says(case: Case) -> None:
    refusal = _refusal(case)
    assert bool(refusal) == (case.status == 400), refusal
    assert len(refusal) < 300 and refusal.isprintable()


@pytest.mark.parametrize("schema", [*(case.schema for case in CASES), TOOL_PARAMETERS])
def test_every_schema_that_the_contract_promises_passes(schema: Any) -> None:
    check_schema_limits(schema)


def test_the_limits_are_those_of_the_file_that_the_proxy_reads() -> None:
    told = json.loads(LIMITS_FILE.read_text())
    assert {name: (limit.most, limit.what) for name, limit in LIMITS.items()} == {
        name: (limit["most"], limit["what"]) for name, limit in told.items()
    }


# What asks for exactly as much of a limit as it is told.
_ASKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "answers": lambda n: {"n": n}, "tokens": lambda n: {"max_tokens": n}, "probabilities": lambda n: {"n_probs": n},
    "media": lambda n: picture(data_url(png_head(1, 1)), n)(),
    "picture_pixels": lambda n: picture(data_url(png_head(n, 1)))(),
    "messages": lambda n: {"messages": [{}] * n}, "tools": lambda n: {"tools": [{}] * n},
    "prompts": lambda n: {"prompt": ["a"] * n}, "stops": lambda n: {"stop": ["a"] * n},
    "stop_chars": lambda n: {"stop": "a" * n}, "biases": lambda n: {"logit_bias": dict.fromkeys(map(str, range(n)), 1)},
    "samplers": lambda n: {"samplers": ["a"] * n},
    "grammar_rules": lambda n: {"grammar": "\n".join(f'r{at} ::= "a"' for at in range(n))},
    "grammar_depth": lambda n: {"grammar": "root ::= " + "(" * n + '"a"' + ")" * n},
    "grammar_repeats": lambda n: {"grammar": f'root ::= "a"{{{n}}}'},
    "grammar_optional_run": lambda n: {"grammar": "root ::= " + '"a"? ' * n},
    "grammar_chars": lambda n: {"grammar": 'root ::= "a"'.ljust(n)},
    "grammar_optional": lambda n: {"grammar": "root ::= " + '"a"? "b" ' * n},
    "grammar_choices": lambda n: {"grammar": "root ::= " + "|".join(f'"{at}"' for at in range(n))},
    "grammar_loops": lambda n: {"grammar": "root ::= " + " ".join(f'"{at}"*' for at in range(n))},
    "grammar_written": lambda n: {"grammar": "root ::= " + " ".join(f'"a"{{{times}}} "b"' for times in _parts(n))},
    "grammar_run_ways": lambda n: {"grammar": f"root ::= {_ambiguous(n)}"},
    "schema_values": lambda n: {"json_schema": {"examples": [0] * (n - 2)}},
    "schema_depth": lambda n: {"json_schema": nested(n - 1, lambda inner: {"items": inner}, {})},
    "schema_enums": lambda n: {"json_schema": {"prefixItems": [{"enum": [0] * at} for at in _parts(n, 250)]}},
    "schema_optional_all": lambda n: {"tools": [{"parameters": _properties(at, required=False)["json_schema"]}
                                                for at in _parts(n, 100)]},
    "schema_expanded": lambda n: {"json_schema": {
        "$defs": {"a": {"anyOf": [{}] * 99}, "b": {"items": {"$ref": "#/$defs/a"}}},
        "prefixItems": [{"$ref": "#/$defs/b"}] * 190 + [{}] * (n - 1 - 190 * 103),
    }},
    "pattern_optional_run": lambda n: {"json_schema": {"pattern": "".join(f"{chr(97 + at)}?" for at in range(n))}},
    "pattern_loops": lambda n: {"json_schema": {"pattern": "".join(f"{at}*" for at in range(n))}},
    "pattern_written": lambda n: {"json_schema": {"pattern": "b".join(f"a{{{times}}}" for times in _parts(n))}},
    "pattern_choices": lambda n: {"json_schema": {"pattern": "|".join(chr(0x4E00 + at) for at in range(n))}},
    "pattern_run_ways": lambda n: {"json_schema": {"pattern": _ambiguous(n).replace('"', "").replace(" ", "")}},
    "schema_properties": lambda n: _properties(n, required=True),
    "schema_optional": lambda n: _properties(n, required=False),
    "schema_enum": lambda n: {"json_schema": {"enum": list(range(n))}},
    "schema_unions": lambda n: {"json_schema": {"anyOf": [{}] * n}},
    "schema_string_chars": lambda n: {"json_schema": {"const": "a" * n}},
    "schema_length": lambda n: {"json_schema": {"type": "string", "maxLength": n}},
    "schema_items": lambda n: {"json_schema": {"items": {}, "maxItems": n}},
    "schema_number": lambda n: {"json_schema": {"minimum": -n}},
    "pattern_chars": lambda n: {"json_schema": {"pattern": ("ab" * n)[:n]}},
    "pattern_depth": lambda n: {"json_schema": {"pattern": "(" * n + "a" + ")" * n}},
    "pattern_repeats": lambda n: {"json_schema": {"pattern": f"a{{{n}}}"}},
    "pattern_optional": lambda n: {"json_schema": {"pattern": "a?b" * n}},
}  # fmt: skip


def _parts(n: int, most: int = 1000) -> list[int]:
    """Numbers of at most so much that add up to n."""
    return [most] * (n // most) + [n % most] * bool(n % most)


def _ambiguous(n: int) -> str:
    """As many ways through a run of "a" in a row: 2^14 of them, or one more."""
    choices = '("a" | [ab])' * (n.bit_length() - 1)
    return choices if n.bit_count() == 1 else f'{choices} | "{"a" * (n.bit_length() - 1)}"'


def _properties(n: int, *, required: bool) -> dict[str, Any]:
    names = [str(at) for at in range(n)]
    return {"json_schema": {"properties": {name: {} for name in names}, "required": names if required else []}}


def test_every_limit_is_kept_and_no_other_is_named() -> None:
    assert set(_ASKS) | set(_OF_BODIES) | {"body_bytes"} == set(LIMITS)  # test_local_guard.py holds that one
    text = "".join(path.read_text() for path in LIMITS_FILE.parents[1].rglob("*.py"))
    for name in LIMITS:
        kind, _, rest = name.partition("_")
        assert f'"{name}"' in text or f'f"{{kind}}_{rest}"' in text, f"{name} ({kind}) is nowhere"


_OF_BODIES: dict[str, Callable[[int], bytes]] = {
    "json_depth": lambda n: b'{"a": ' + b"[" * (n - 1) + b"]" * (n - 1) + b"}",
    "json_values": lambda n: json.dumps({"a": [0] * (n - 2)}).encode(),
    "text_bytes": lambda n: json.dumps({"content": "é" * (n // 2) + "a" * (n % 2)}).encode(),
}


@pytest.mark.parametrize("name", _OF_BODIES)
def test_a_limit_of_the_body_takes_its_most_and_nothing_more(name: str) -> None:
    most = LIMITS[name].most
    check_text_limit(parse_request_body(_OF_BODIES[name](most)).get("content"))
    with pytest.raises(TooMuch, match=f"at most {most} are allowed"):
        check_text_limit(parse_request_body(_OF_BODIES[name](most + 1)).get("content"))


@pytest.mark.commands
@pytest.mark.parametrize("name", _ASKS)
def test_a_limit_takes_its_most_and_nothing_more(name: str) -> None:
    most = LIMITS[name].most
    check_request_limits(_ASKS[name](most))
    with pytest.raises(TooMuch, match=f"at most {most} are allowed"):
        check_request_limits(_ASKS[name](most + 1))


@pytest.mark.parametrize(
    "grammar",
    [
        '"a"', "root ::= (", 'root ::= "a', "root ::= [a", "root ::= )", "root ::= *", "root ::= (a\nb ::= c)",
        'root ::= "a" %', "root ::= [b-a]", "root ::= [^\\x00-\\U0010FFFF]", "root ::= a\n" + "\n".join(
            f"a{n} ::= a{n + 1}" for n in range(500)) + "\na500 ::= a0",
    ],
)  # fmt: skip
def test_what_is_no_grammar_or_matches_nothing_is_refused(grammar: str) -> None:
    with pytest.raises(TooMuch, match=r"^grammar: "):
        check_grammar_limits(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        JSON_GRAMMAR, SUM_GRAMMAR, 'root ::= "(" root ")" | "x"', 'root ::= "a"{2,} [^"\\]]*',
        'root ::= item "," root | item\nitem ::= [a-z]+', 'root ::= "a" root | [b-d] root | "x"',
        'root ::= "(" root ")" | "[" root "]" | [a-z]+', 'root ::= "x" ("a" root)? "a"',
    ],
)  # fmt: skip
def test_grammars_that_ordinary_clients_write_pass(grammar: str) -> None:
    check_grammar_limits(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a" root "b" | [a-c] root "c" | "x"', 'root ::= b root | "ab"\nb ::= "a"?',
        'root ::= "x" ("a" root "b" | "a" root "c" | "ab")', 'root ::= ("a" root "b")? ("a" root "c")? "x"',
        'root ::= . root "x" | [^b] root "y" | "b"', 'root ::= "\\x61" root "b" | "a" root "c" | "d"',
        'root ::= a "b" | a "c" | "x"\na ::= "a" root', 'root ::= "a" root* "b" | "a" root+ "c" | "x"',
    ],
)  # fmt: skip
def test_a_rule_that_calls_itself_in_two_ways_that_begin_alike_is_refused(grammar: str) -> None:
    with pytest.raises(TooMuch, match=r"begin alike|begins with itself"):
        check_grammar_limits(grammar)


def test_what_a_rule_holds_counts_wherever_the_rule_stands() -> None:
    size = GrammarSizes(read_gbnf_grammar('root ::= a{10}\na ::= b b b\nb ::= "x"?')).all()
    assert (size.run, size.ways, size.repeats) == (30, 30, 10)
    assert GrammarSizes(read_regex_grammar("^(( ?){4}){4}$")).all().run == 16
    assert GrammarSizes(read_gbnf_grammar('root ::= "a"{0,2000}')).all().run == 1  # each has its place after the last


def test_a_comment_or_a_quoted_bracket_is_no_part() -> None:
    read = read_gbnf_grammar('# ((((\nroot ::= "((" [(] # ))\n')
    assert read.depth == 0 and read.n_rules == 1


def test_a_reference_counts_each_time_and_a_cycle_once() -> None:
    check_schema_limits({"$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"})
    check_schema_limits({"properties": {"x": {"$ref": "#"}}})
    with pytest.raises(TooMuch, match="has no target"):
        check_schema_limits({"$ref": "#/$defs/none"})


def test_keywords_count_where_they_are_keywords_alone() -> None:
    named = {"maxLength": {"type": "integer"}, "$ref": {"type": "string"}}
    check_schema_limits({"properties": named, "default": {"enum": [1] * 400}})
    with pytest.raises(TooMuch, match="maxLength"):
        check_schema_limits({"properties": {"enum": {"items": {"additionalProperties": {"maxLength": 10**7}}}}})


def test_what_cannot_be_read_names_where() -> None:
    with pytest.raises(NotRead, match="character 9"):
        read_gbnf_grammar("root ::= %")
