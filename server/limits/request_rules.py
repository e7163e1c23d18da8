"""Checks requests to the local server against request_limits.json, which the compose file's proxy uses too.

The top of tests/hostile/api_requests.py explains what each limit counts; the requests there test both servers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from server.limits.grammar_beginnings import check_grammar_beginnings
from server.limits.grammar_loops import check_grammar_loops
from server.limits.grammar_runs import TooManyWays, check_grammar_runs
from server.limits.grammar_size import GrammarSizes, NotRead, ReadGrammar, read_gbnf_grammar, read_regex_grammar
from server.limits.media_rules import MediaError, media_pixels, request_media
from server.limits.schema_size import SchemaError, measure_schema_size, schema_regexes

LIMITS_FILE: Final = Path(__file__).parent / "request_limits.json"


@dataclass(frozen=True)
class Limit:
    """The largest allowed value, and the words for what is counted."""

    most: int
    what: str


LIMITS: Final[Mapping[str, Limit]] = {
    name: Limit(**limit) for name, limit in json.loads(LIMITS_FILE.read_text(encoding="utf-8")).items()
}

_LEAST_TOKENS: Final = -2
_TOKENS: Final = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "repeat_last_n", "dry_penalty_last_n",
    "penalty_last_n", "n_keep", "n_discard", "top_k", "min_keep", "min_tokens",
)  # fmt: skip
_COUNTS: Final = {
    **dict.fromkeys(_TOKENS, "tokens"), **dict.fromkeys(("n", "n_cmpl", "best_of"), "answers"),
    **dict.fromkeys(("n_probs", "top_logprobs", "logprobs"), "probabilities"),
}  # fmt: skip
_LISTS: Final = {
    "messages": "messages", "tools": "tools", "functions": "tools", "stop": "stops", "stop_sequences": "stops",
    "logit_bias": "biases", "samplers": "samplers", "dry_sequence_breakers": "samplers",
}  # fmt: skip
# llama-server's internal fields, which reach its parsers unchecked.
_INNER: Final = ("grammar_triggers", "grammar_lazy", "preserved_tokens", "chat_parser")


class TooMuch(ValueError):
    """A request that exceeds a limit or is malformed."""


def parse_request_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        TooMuch: it is not JSON, or exceeds the limits of JSON.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_request_constant)
    except RecursionError:
        raise _over_request_limit("json_depth", "too many") from None
    except ValueError as error:
        raise TooMuch(f"the body is not JSON: {str(error)[:80]}") from None
    if not isinstance(value, dict):
        raise TooMuch("the body is not a JSON object")
    depth, n_values = measure_request_json(value)
    _hold_request_limit("json_depth", depth)
    _hold_request_limit("json_values", n_values)
    return value


def measure_request_json(value: Any) -> tuple[int, int]:
    """The depth and the number of values; counting stops once the limit is exceeded.

    Raises:
        TooMuch: a number is infinite.
    """
    deepest, n_values, left = 0, 0, [(value, 0)]
    while left and n_values <= LIMITS["json_values"].most:
        one, depth = left.pop()
        n_values += 1
        if isinstance(one, dict | list):
            deepest = max(deepest, depth + 1)
            left.extend((inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one))
        elif isinstance(one, float) and not math.isfinite(one):
            raise TooMuch("a number is infinite")
    return deepest, n_values


def check_request_limits(asked: Mapping[str, Any]) -> None:
    """Check a body against every limit.

    Raises:
        TooMuch: a limit is exceeded; the message has the value and the limit.
    """
    for name in _INNER:
        if name in asked:
            raise TooMuch(f"{name} is not accepted")
    for name, limit in _COUNTS.items():
        _check_request_count(name, asked.get(name), limit)
    for name, limit in _LISTS.items():
        if isinstance(listed := asked.get(name), list | dict):
            _hold_request_limit(limit, len(listed))
    _check_request_texts(asked)
    _check_media(asked)
    if (grammar := asked.get("grammar")) is not None:
        check_grammar_limits(grammar)
    n_optional = 0
    for schema in request_schemas(asked):
        n_optional += check_schema_limits(schema)
        _hold_request_limit("schema_optional_all", n_optional)


def _check_request_count(name: str, value: Any, limit: str) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < _LEAST_TOKENS:
            raise TooMuch(f"{name} is {value}")
        _hold_request_limit(limit, value)


def _check_request_texts(asked: Mapping[str, Any]) -> None:
    for name in ("stop", "stop_sequences"):
        stops = asked.get(name)
        for stop in stops if isinstance(stops, list) else [stops]:
            if isinstance(stop, str):
                _hold_request_limit("stop_chars", len(stop))
    for name in ("prompt", "input"):
        prompts = asked.get(name)
        if isinstance(prompts, list) and not all(isinstance(one, int | float) for one in prompts):
            _hold_request_limit("prompts", len(prompts))


def _check_media(asked: Mapping[str, Any]) -> None:
    try:
        for number, data in enumerate(request_media(asked), start=1):
            _hold_request_limit("media", number)
            _hold_request_limit("picture_pixels", media_pixels(data))
    except MediaError as error:
        raise TooMuch(str(error)) from None


def check_text_limit(text: Any) -> None:
    """Check a text to tokenize. Raises the same."""
    _hold_request_limit("text_bytes", _request_text_bytes(text))


def _request_text_bytes(text: Any) -> int:
    """Bytes of a text, or of the texts in a list, which may hold tokens too."""
    if isinstance(text, list):
        return sum(_request_text_bytes(part) for part in text)
    return len(text.encode(errors="surrogatepass")) if isinstance(text, str) else 0


def check_grammar_limits(grammar: Any) -> None:
    """Check a grammar in GBNF. Raises the same."""
    if not isinstance(grammar, str):
        raise TooMuch("grammar is not text")
    _hold_request_limit("grammar_chars", len(grammar))
    try:
        read = read_gbnf_grammar(grammar)
        _hold_request_limit("grammar_rules", read.n_rules)
        _check_grammar_work(read, "grammar")
    except NotRead as error:
        raise TooMuch(f"grammar: {error}") from None
    except RecursionError:
        raise TooMuch("grammar: its rules are nested too deeply") from None


def check_regex_limits(pattern: str) -> None:
    """Check a regular expression. Raises the same."""
    _hold_request_limit("pattern_chars", len(pattern))
    try:
        _check_grammar_work(read_regex_grammar(pattern), "pattern")
    except NotRead as error:
        raise TooMuch(f"a pattern: {error}") from None


def _check_grammar_work(read: ReadGrammar, kind: str) -> None:
    """Check the cost of a parsed text; `kind` is "grammar" or "pattern" and selects the limits."""
    _hold_request_limit(f"{kind}_depth", read.depth)
    size = GrammarSizes(read).all()
    _hold_request_limit(f"{kind}_optional", read.n_optional)
    _hold_request_limit(f"{kind}_optional_run", size.run)
    _hold_request_limit(f"{kind}_repeats", size.repeats)
    _hold_request_limit(f"{kind}_choices", size.ways)
    _hold_request_limit(f"{kind}_loops", size.loops)
    _hold_request_limit(f"{kind}_written", read.n_written)
    check_grammar_loops(read, check_grammar_beginnings(read))
    try:
        check_grammar_runs(read, LIMITS[f"{kind}_run_ways"].most)
    except TooManyWays as error:
        _hold_request_limit(f"{kind}_run_ways", error.ways)


def check_schema_limits(schema: Any) -> int:
    """Check a JSON schema. Raises the same.

    Returns:
        The number of its properties that are not required.
    """
    depth, n_values = measure_request_json(schema)
    _hold_request_limit("schema_depth", depth)
    _hold_request_limit("schema_values", n_values)
    n_optional = 0
    try:
        for limit, value in measure_schema_size(schema, LIMITS["schema_expanded"].most):
            _hold_request_limit(limit, value)
            n_optional += int(value) if limit == "schema_optional" else 0
        for pattern in schema_regexes(schema):
            check_regex_limits(pattern)
    except SchemaError as error:
        raise TooMuch(f"a JSON schema: {error}") from None
    except RecursionError:
        raise TooMuch("a JSON schema: its references are nested too deeply") from None
    return n_optional


def request_schemas(asked: Mapping[str, Any]) -> Iterator[Any]:
    """Every schema in a body."""
    yield from _present_request_fields(asked, "json_schema")
    wanted = asked.get("response_format")
    if isinstance(wanted, dict):
        yield from _present_request_fields(wanted, "schema", "json_schema")
        if isinstance(named := wanted.get("json_schema"), dict):
            yield from _present_request_fields(named, "schema")
    for place in ("text", "output_config"):
        if isinstance(within := asked.get(place), dict) and isinstance(form := within.get("format"), dict):
            yield from _present_request_fields(form, "schema")
    if isinstance(form := asked.get("output_format"), dict):
        yield from _present_request_fields(form, "schema")
    for tool in (*_listed_request_objects(asked, "tools"), *_listed_request_objects(asked, "functions")):
        yield from _present_request_fields(tool, "parameters", "input_schema")
        if isinstance(function := tool.get("function"), dict):
            yield from _present_request_fields(function, "parameters")


def _present_request_fields(within: Mapping[str, Any], *names: str) -> Iterator[Any]:
    return (within[name] for name in names if within.get(name) is not None)


def _listed_request_objects(asked: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = asked.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _refuse_request_constant(word: str) -> None:
    raise ValueError(f"{word} is not a JSON number")


def _hold_request_limit(name: str, value: float) -> None:
    if value > LIMITS[name].most:
        raise _over_request_limit(name, f"{value:g}" if isinstance(value, float) else str(value))


def _over_request_limit(name: str, value: str) -> TooMuch:
    limit = LIMITS[name]
    return TooMuch(f"{value} {limit.what}: at most {limit.most} are allowed")
