"""What a served model promises on the wire, as checks: plain requests, and a judgement with values.

A check is a function of a `Session`; it returns an `Outcome`, or raises `Broken` with what was promised and not
kept. Prompts and seeds are fixed and the temperature is 0 where chance is not the question. Answers that are
compared are asked for once before: the first finds no cache, and sums in another order can turn a near-tie.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue

from quantyard.formatting.numbers import elapsed
from quantyard.protocol.api_tests import CheckStatus, SchemaRate
from server.api_checks.abuse import (
    closed_routes,
    hostile_grammars,
    hostile_schemas,
    large_body,
    large_tokenize,
    slow_clients,
)
from server.api_checks.launch import Answer
from server.api_checks.schemas import CASES, Case, Schema, Verdict, judge_answer, rate_of, say_rate, why_invalid
from server.api_checks.session import (
    CHAT,
    COMPLETION,
    EXCERPT,
    Broken,
    Session,
    choice_of,
    error_text,
    need,
    shown,
    text_of,
    usage_of,
)

_STORY: Final = "Write a long story about a ship and the sea."
_CAPITAL: Final = "What is the capital of France? Answer in one sentence."
_MAX_TOKENS: Final = 8  # asked for exactly
_ANSWER_TOKENS: Final = 24
_SCHEMA_TOKENS: Final = 160  # the longest answer that a schema of the table allows takes about 100
_TOOL_TOKENS: Final = 96
_CLIENTS: Final = 32
_UNKNOWN_CONTEXT: Final = 1 << 18  # words of an oversized prompt where the server does not name its context
_REFUSED: Final = "response_format json_schema is refused"
TOOL_PARAMETERS: Final[Schema] = {
    "type": "object", "required": ["city", "days"], "additionalProperties": False, "properties": {
        "city": {"type": "string", "maxLength": 24}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
}  # fmt: skip
_TOOL: Final = {"name": "get_weather", "description": "The weather of the next days", "parameters": TOOL_PARAMETERS}
_TOOL_PROMPT: Final = "Call get_weather for {city} and {days} days. Write nothing else."
_EXAMPLE_ID: Final = "example01"  # Mistral's templates want nine letters and digits
_EXAMPLE: Final[list[dict[str, object]]] = [
    {"role": "user", "content": _TOOL_PROMPT.format(city="Rome", days=2)},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": _EXAMPLE_ID, "type": "function", "function": {
            "name": _TOOL["name"], "arguments": '{"city": "Rome", "days": 2}',
        }},
    ]},
    {"role": "tool", "tool_call_id": _EXAMPLE_ID, "content": "Sunny."},
    {"role": "assistant", "content": "Sunny."},
]  # fmt: skip
_STRANGERS: Final = ((None, "no key"), ("wrong", "a wrong key"))
# Other doors to the same model: none may open without the key. Those a server does not have answer 401 or 404.
_DOORS: Final = (CHAT, COMPLETION, "/completion", "/chat/completions", "/v1/messages", "/v1/responses", "/infill")


@dataclass(frozen=True)
class Outcome:
    """How a check ended."""

    status: CheckStatus
    finding: str
    facts: dict[str, JsonValue] = field(default_factory=dict)
    schemas: SchemaRate | None = None


def _passed(finding: str, **facts: JsonValue) -> Outcome:
    return Outcome("passed", finding, facts)


# ---- answers -----------------------------------------------------------------------------------------


def _health(session: Session) -> Outcome:
    answer = session.wire.with_key(None).get("/health")
    need(answer.status == 200, f"/health without a key: {shown(answer)}")
    return _passed("200, without a key")


def _models(session: Session) -> Outcome:
    answer = session.wire.get("/v1/models")
    data = answer.body.get("data")
    need(answer.status == 200 and answer.body.get("object") == "list" and bool(data), f"no list: {shown(answer)}")
    need(bool(session.model), f"the first model has no id: {data}")
    return _passed(f"{len(data or ())} listed, the first is {session.model!r}")


def _chat(session: Session) -> Outcome:
    answer = session.chat(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    choice, text, (prompt, completion, _) = choice_of(answer), text_of(answer), usage_of(answer)
    role, reason = (choice.get("message") or {}).get("role"), choice.get("finish_reason")
    need(role == "assistant", f"the role is {role!r}")
    need(bool(text.strip()), "the content is empty")
    need(reason in {"stop", "length"}, f"finish_reason is {reason!r}")
    model, created = answer.body.get("model"), answer.body.get("created")
    need(model == session.model, f"asked for {session.model!r}, answered as {model!r}")
    need(isinstance(created, int) and created > 0, f"created is {created!r}")
    return _passed(f"{text[:60]!r}, finish_reason {reason}, {prompt} + {completion} tokens")


def _completion(session: Session) -> Outcome:
    answer = session.complete("One, two, three, four,", max_tokens=_MAX_TOKENS)
    text, (prompt, completion, _) = text_of(answer), usage_of(answer)
    need(bool(text.strip()), "the text is empty")
    return _passed(f"{text[:60]!r}, {prompt} + {completion} tokens")


def _streaming(session: Session) -> Outcome:
    session.chat(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    whole = session.chat(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    streamed = session.stream(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    text, reason = text_of(whole), choice_of(whole).get("finish_reason")
    need(streamed.text == text, f"streamed {streamed.text!r}, but in one piece {text!r}")
    need(streamed.finish_reason == reason, f"finish_reason {streamed.finish_reason!r}, but in one piece {reason!r}")
    need(streamed.is_done, "the stream does not end with [DONE]")
    return _passed(f"the same {len(text)} characters in {streamed.n_chunks} events, then [DONE]")


def _streamed_usage(session: Session) -> Outcome:
    whole = usage_of(session.chat(_CAPITAL, max_tokens=_ANSWER_TOKENS))
    usage = session.stream(_CAPITAL, max_tokens=_ANSWER_TOKENS, stream_options={"include_usage": True}).usage
    need(bool(usage), "no chunk has a usage, though include_usage was asked for")
    streamed = tuple(usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    need(streamed == whole, f"usage {streamed} in the stream, {whole} in one piece")
    return _passed(f"{whole[0]} + {whole[1]} tokens in both")


def _stop(session: Session) -> Outcome:
    """A stop string that begins inside one token and ends inside another must not leak, not even in a stream."""
    session.chat(_STORY, max_tokens=_ANSWER_TOKENS)
    text = text_of(session.chat(_STORY, max_tokens=_ANSWER_TOKENS))
    middle = len(text) // 2
    stop = text[middle : middle + 5]
    need(bool(stop.strip()), f"too short an answer to stop in: {text!r}")
    wanted = text[: text.index(stop)]
    answer = session.chat(_STORY, max_tokens=_ANSWER_TOKENS, stop=[stop])
    streamed = session.stream(_STORY, max_tokens=_ANSWER_TOKENS, stop=[stop])
    found = ((text_of(answer), choice_of(answer).get("finish_reason")), (streamed.text, streamed.finish_reason))
    for written, reason in found:
        need(stop not in written, f"the stop string {stop!r} is in {written!r}")
        need(reason == "stop", f"finish_reason is {reason!r} at the stop string {stop!r}")
        need(written == wanted, f"wanted {wanted!r} up to {stop!r}, got {written!r}")
    return _passed(f"ended before {stop!r} after {len(wanted)} characters, in one piece and streamed")


def _max_tokens(session: Session) -> Outcome:
    answer = session.chat(_STORY, max_tokens=_MAX_TOKENS)
    reason, completion = choice_of(answer).get("finish_reason"), usage_of(answer)[1]
    need(reason == "length", f"finish_reason is {reason!r} at max_tokens {_MAX_TOKENS}, after {completion} tokens")
    need(completion == _MAX_TOKENS, f"{completion} completion_tokens, {_MAX_TOKENS} were asked for")
    return _passed(f"length after exactly {completion} tokens")


def _usage_counts(session: Session) -> Outcome:
    short = usage_of(session.complete("One, two,", max_tokens=1))[0]
    long = usage_of(session.complete("One, two, three, four, five, six,", max_tokens=1))[0]
    need(long > short, f"{long} prompt_tokens for the longer prompt, {short} for the shorter")
    counted = [_counted(session, "One, two,", short), _counted_chat(session)]
    return _passed(f"{short} and {long} prompt_tokens; {'; '.join(counted)}")


def _counted(session: Session, prompt: str, used: int) -> str:
    """A prompt's tokens, as the server's own tokenizer counts them."""
    asked = {"content": prompt, "input": prompt, "add_special": True}
    answers = (session.wire.post(path, asked) for path in ("/tokenize", "/extras/tokenize"))
    tokens = next((answer.body.get("tokens") for answer in answers if answer.status == 200), None)
    if tokens is None:
        return "no tokenizer to ask"
    need(len(tokens) == used, f"{used} prompt_tokens, but its tokenizer counts {len(tokens)}: {prompt[:EXCERPT]!r}")
    return f"its tokenizer counts {used} too"


def _counted_chat(session: Session) -> str:
    body = session.chat_body(_CAPITAL, max_tokens=1)
    template = session.wire.post("/apply-template", body)
    if template.status != 200:
        return "no template to ask"
    used = usage_of(session.wire.post(CHAT, body))[0]
    return f"of a chat, {_counted(session, str(template.body.get('prompt')), used)}"


def _seeds(session: Session) -> Outcome:
    def ask(seed: int) -> str:
        return text_of(session.chat(_STORY, max_tokens=_ANSWER_TOKENS, temperature=1, seed=seed))

    ask(42)
    first, second, other = ask(42), ask(42), ask(43)
    need(first == second, f"seed 42 wrote {first!r}, then {second!r}")
    differs = "another" if first != other else "the same"
    return _passed(f"seed 42 wrote the same {len(first)} characters twice, seed 43 {differs} text")


# ---- structure ---------------------------------------------------------------------------------------


def _json_schema(session: Session) -> Outcome:
    form, refusal = _schema_form(session)
    verdicts = {case.name: _asked(session, case, form) for case in CASES}
    rate = rate_of(verdicts, form)
    said = f"{_REFUSED} ({refusal}); as json_object with a schema, {say_rate(rate)}" if refusal else say_rate(rate)
    kept = not refusal and rate.rate >= rate.gate
    return Outcome("passed" if kept else "failed", said, schemas=rate)


def _asked(session: Session, case: Case, form: str) -> Verdict:
    asked = {"max_tokens": _SCHEMA_TOKENS, "response_format": _response_format(form, case.schema)}
    return _judged(session.chat(f"{case.prompt} Answer in JSON.", **asked), case.schema)


def _schema_form(session: Session) -> tuple[str, str]:
    """The form the server takes, and why it refuses the standard one ("": it does not)."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = session.chat("Is it?", max_tokens=1, response_format=_response_format("json_schema", schema))
    return ("json_schema", "") if answer.status == 200 else ("json_object", shown(answer)[:EXCERPT])


def _response_format(form: str, schema: Schema) -> dict[str, object]:
    if form == "json_schema":
        return {"type": form, "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {"type": form, "schema": schema}


def _judged(answer: Answer, schema: Schema) -> Verdict:
    if answer.status != 200:
        return Verdict("refused", shown(answer))
    choice = choice_of(answer)
    content = (choice.get("message") or {}).get("content")
    return judge_answer(str(content or ""), str(choice.get("finish_reason")), schema)


def _tool_calls(session: Session) -> Outcome:
    """Asked for plainly, then with an example of a call in the conversation: llama-server's grammar lets any text come
    before a required call (ggml-org/llama.cpp#27217), and a weak model goes on with it until max_tokens. Naming the
    tool would say nothing: it takes that for "auto" (#26849).
    """
    if session.props.get("chat_template_caps", {}).get("supports_tools") is False:
        return Outcome("not supported", "the model's chat template has no tools (chat_template_caps of /props)")
    said, is_call = _call(session, [])
    if is_call:
        return _passed(f"{said}, valid against the tool's schema", after_an_example=False)
    later, is_call = _call(session, _EXAMPLE)
    if is_call:
        finding = f"{later}, valid against the tool's schema, after an example of a call; without one, {said}"
        return _passed(finding, after_an_example=True)
    raise Broken(f"tool_choice 'required' gave no tool call but {said}; after an example of one, {later}")


def _call(session: Session, before: list[dict[str, object]]) -> tuple[str, bool]:
    """The one tool call of an answer, checked; or what came in its place."""
    prompt = _TOOL_PROMPT.format(city="Paris", days=3)
    answer = session.chat(
        prompt, messages=[*before, {"role": "user", "content": prompt}], max_tokens=_TOOL_TOKENS,
        tools=[{"type": "function", "function": _TOOL}], tool_choice="required",
    )  # fmt: skip
    found = choice_of(answer)
    calls = (found.get("message") or {}).get("tool_calls")
    if not calls:
        return f"{text_of(answer)[:40]!r} (finish_reason {found.get('finish_reason')})", False
    function = calls[0].get("function") or {}
    name, arguments = function.get("name"), function.get("arguments")
    need(name == _TOOL["name"], f"called {name!r}, there is only {_TOOL['name']!r}")
    need(isinstance(arguments, str), f"arguments are not a string of JSON: {arguments!r}")
    verdict = why_invalid(str(arguments), TOOL_PARAMETERS)
    need(verdict.kind == "valid", f"arguments {arguments!r} are {verdict.kind}: {verdict.finding}")
    return f"{name}({arguments})", True


# ---- refusals ----------------------------------------------------------------------------------------


def _embeddings(session: Session) -> Outcome:
    answer = session.wire.post("/v1/embeddings", {"model": session.model, "input": "hello"})
    if answer.status == 200:
        vector = (answer.body.get("data") or [{}])[0].get("embedding")
        need(bool(vector), f"200 without an embedding: {shown(answer)}")
        return _passed(f"served: {len(vector)} numbers")
    refused = 400 <= answer.status < 500 or answer.status == 501
    need(refused and bool(error_text(answer)), f"wanted 4xx or 501 and why, got {shown(answer)}")
    return _passed(f"refused: {answer.status} {error_text(answer)[:EXCERPT]}")


def _wrong_key(session: Session) -> Outcome:
    body = {**session.chat_body("Hello", max_tokens=1), "prompt": "Hello", "input": "Hello"}
    right = session.wire.key or ""
    for key, called in (*_STRANGERS, (right[:-1] or "x", "a cut key"), (right + "x", "a longer key")):
        stranger = session.wire.with_key(key)
        for path in _DOORS:
            answer = stranger.post(path, body)
            is_open = answer.status < 400 or "choices" in answer.body
            need(not is_open, f"{path} answers {called}: {shown(answer)}")
            wanted = answer.status == 401 or path not in (CHAT, COMPLETION)
            need(wanted, f"{path} refuses {called} with {answer.status}, wanted 401")
    return _passed(f"401 for no key, a wrong, a cut and a longer one; {len(_DOORS)} paths give them nothing")


def _oversized(session: Session) -> Outcome:
    n_words = (session.n_ctx or _UNKNOWN_CONTEXT) + 64
    answer = session.chat("word " * n_words, max_tokens=1)
    said = error_text(answer)
    need(answer.status == 400 and bool(said), f"a prompt of {n_words} words: wanted 400 and why, got {shown(answer)}")
    numbers = {int(number) for number in re.findall(r"\d+", said.replace(",", ""))}
    names_context = session.n_ctx in numbers if session.n_ctx else any(number < n_words for number in numbers)
    names_prompt = any(number >= n_words for number in numbers)
    need(names_context and names_prompt, f"the error does not name both sizes: {said[:EXCERPT]!r}")
    return _passed(f"400: {said[:EXCERPT]}")


def _malformed(session: Session) -> Outcome:
    for text in ('{"messages": [', "", "[]", '{"messages": "Hello"}'):
        answer = session.wire.post_text(CHAT, text)
        is_clear = 400 <= answer.status < 500 and bool(error_text(answer))
        need(is_clear, f"the body {text!r}: wanted 4xx and a JSON error, got {shown(answer) or 'nothing'}")
    return _passed(f"4xx with a JSON error, the last {shown(answer)}")


def _unknown_path(session: Session) -> Outcome:
    answers = session.wire.get("/v1/no-such-thing"), session.wire.post("/v1/no-such-thing", {})
    for answer in answers:
        need(answer.status == 404, f"wanted 404, got {shown(answer)}")
    return _passed("404, for GET and POST")


# ---- many at once ------------------------------------------------------------------------------------


def _concurrency(session: Session) -> Outcome:
    """Each client's prompt has a length of its own, so an answer that belongs to another shows in its usage."""
    def ask(number: int) -> Answer:
        return session.chat("Say it again:" + " word" * (number + 1), max_tokens=_MAX_TOKENS)

    alone = [usage_of(ask(number))[0] for number in (0, _CLIENTS - 1)]
    started = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        answers = list(clients.map(ask, range(_CLIENTS)))
    total_s, slowest_s = time.perf_counter() - started, max(answer.duration_s for answer in answers)
    empty = [number for number, answer in enumerate(answers) if not text_of(answer).strip()]
    need(not empty, f"the answers of clients {empty} are empty")
    used = [usage_of(answer)[0] for answer in answers]
    need([used[0], used[-1]] == alone, f"prompt_tokens {used[0]} and {used[-1]}, but alone {alone}")
    need(sorted(set(used)) == used, f"answers belong to other prompts: prompt_tokens {used}")
    finding = f"{_CLIENTS} clients answered in {elapsed(total_s)}, the slowest after {elapsed(slowest_s)}"
    return _passed(finding, total_s=total_s, slowest_s=slowest_s, clients=_CLIENTS)


# ---- clients that mean harm --------------------------------------------------------------------------


def _abuse(check: Callable[[Session], str]) -> Callable[[Session], Outcome]:
    return lambda session: _passed(check(session))


# ---- the table ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ApiCheck:
    """One promise, and what tries it."""

    name: str
    promise: str
    run: Callable[[Session], Outcome]


# To add a check: a row, with a function of a Session that raises Broken where the promise is not kept.
CHECKS: Final = (
    ApiCheck("health", "/health says 200 once the model is loaded, without a key", _health),
    ApiCheck("models", "the model is listed", _models),
    ApiCheck("chat", "a chat is answered, with role, finish_reason, model, created and usage", _chat),
    ApiCheck("completion", "a text is continued", _completion),
    ApiCheck("streaming", "a stream adds up to the answer in one piece", _streaming),
    ApiCheck("streamed-usage", "a stream ends with the usage, if asked for", _streamed_usage),
    ApiCheck("stop", "a stop string ends the answer and is not part of it", _stop),
    ApiCheck("max-tokens", "max_tokens is the number of tokens", _max_tokens),
    ApiCheck("usage", "usage counts what the tokenizer counts", _usage_counts),
    ApiCheck("seeds", "the same seed writes the same text at temperature 1", _seeds),
    ApiCheck("json-schema", "answers conform to a JSON schema", _json_schema),
    ApiCheck("tool-calls", "a required tool is called with valid arguments", _tool_calls),
    ApiCheck("embeddings", "embeddings are served, or refused with the reason", _embeddings),
    ApiCheck("wrong-key", "a request without the key gets no answer of the model", _wrong_key),
    ApiCheck("oversized", "a prompt that is too long is refused, with both sizes", _oversized),
    ApiCheck("malformed", "a body that is not a request is refused, with the reason", _malformed),
    ApiCheck("unknown-path", "a path that is not there is 404", _unknown_path),
    ApiCheck("concurrency", f"{_CLIENTS} clients at once are all answered", _concurrency),
    ApiCheck("slow-clients", "idle connections do not block other clients, and end in seconds", _abuse(slow_clients)),
    ApiCheck("large-body", "a body that is too large is refused", _abuse(large_body)),
    ApiCheck("closed-routes", "routes that change the server or show requests are closed", _abuse(closed_routes)),
    ApiCheck("hostile-grammars", "a grammar that would end or stall the server is refused", _abuse(hostile_grammars)),
    ApiCheck("hostile-schemas", "a schema that would is refused too", _abuse(hostile_schemas)),
    ApiCheck("large-tokenize", "a text that is too large to tokenize is refused", _abuse(large_tokenize)),
)
