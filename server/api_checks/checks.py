"""Checks of what a served model promises over HTTP: plain requests, and verdicts with values.

A check is a function of an `ApiSession`; it returns a `CheckOutcome`, or raises `BrokenPromise` with the promise that
was broken. Prompts and seeds are fixed, and the temperature is 0 unless sampling is what is tested. Before answers are
compared, the request is sent once: the first answer is computed without a prompt cache, in another order of sums, which
can flip a near-tie between tokens.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue

from quantyard.formats.gguf import Medium
from quantyard.formats.purpose import Purpose
from quantyard.formatting.numbers import format_elapsed
from quantyard.protocol.api_tests import CheckStatus, SchemaRate
from server.api_checks.abuse import (
    check_closed_routes,
    check_hostile_grammars,
    check_hostile_schemas,
    check_large_body,
    check_large_tokenize,
    check_slow_clients,
)
from server.api_checks.launch import Answer
from server.api_checks.media import check_picture, check_sound
from server.api_checks.schemas import (
    CASES,
    Schema,
    SchemaCase,
    SchemaVerdict,
    judge_schema_answer,
    judge_schema_text,
    schema_rate,
    schema_rate_text,
)
from server.api_checks.session import (
    CHAT,
    COMPLETION,
    EMBEDDINGS,
    EXCERPT,
    RERANK,
    ApiSession,
    BrokenPromise,
    api_answer_choice,
    api_answer_text,
    api_answer_usage,
    api_error_text,
    need_promise,
    shown_api_answer,
)
from server.api_checks.vectors import (
    CLIENTS,
    check_base64,
    check_ranking,
    check_vector_clients,
    check_vector_order,
    check_vectors,
    check_wrong_input,
)

_HALF: Final = "\N{REPLACEMENT CHARACTER}"  # a character that max_tokens cut: a stream may leave it out
_STORY: Final = "Write a long story about a ship and the sea."
_CAPITAL: Final = "What is the capital of France? Answer in one sentence."
_MAX_TOKENS: Final = 8
_ANSWER_TOKENS: Final = 24
_SCHEMA_TOKENS: Final = 160  # the longest answer that `CASES` allows has about 100
_TOOL_TOKENS: Final = 96
_CLIENTS: Final = 32
_UNKNOWN_CONTEXT: Final = 1 << 18  # words of an oversized prompt if the server does not report its context
_REFUSED: Final = "response_format json_schema is refused"
TOOL_PARAMETERS: Final[Schema] = {
    "type": "object", "required": ["city", "days"], "additionalProperties": False, "properties": {
        "city": {"type": "string", "maxLength": 24}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
}  # fmt: skip
_TOOL: Final = {"name": "get_weather", "description": "The weather of the next days", "parameters": TOOL_PARAMETERS}
_TOOL_PROMPT: Final = "Call get_weather for {city} and {days} days. Write nothing else."
_EXAMPLE_ID: Final = "example01"  # Mistral's templates require nine letters and digits
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
# All routes to the model: none may answer without the key. Routes that a server does not have may answer 401 or 404.
_DOORS: Final = (CHAT, COMPLETION, "/completion", "/chat/completions", "/v1/messages", "/v1/responses", "/infill",
          EMBEDDINGS, RERANK, "/embeddings")  # fmt: skip


@dataclass(frozen=True)
class CheckOutcome:
    """How a check ended."""

    status: CheckStatus
    finding: str
    facts: dict[str, JsonValue] = field(default_factory=dict)
    schemas: SchemaRate | None = None


def _passed(finding: str, **facts: JsonValue) -> CheckOutcome:
    return CheckOutcome("passed", finding, facts)


# ---- answers -----------------------------------------------------------------------------------------


def _health(session: ApiSession) -> CheckOutcome:
    answer = session.wire.with_key(None).get("/health")
    need_promise(answer.status == 200, f"/health without a key: {shown_api_answer(answer)}")
    return _passed("200, without a key")


def _models(session: ApiSession) -> CheckOutcome:
    answer = session.wire.get("/v1/models")
    data = answer.body.get("data")
    need_promise(
        answer.status == 200 and answer.body.get("object") == "list" and bool(data),
        f"no list: {shown_api_answer(answer)}",
    )
    need_promise(bool(session.model), f"the first model has no id: {data}")
    return _passed(f"{len(data or ())} listed, the first is {session.model!r}")


def _chat(session: ApiSession) -> CheckOutcome:
    answer = session.chat(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    choice, text, (prompt, completion, _) = api_answer_choice(answer), api_answer_text(answer), api_answer_usage(answer)
    role, reason = (choice.get("message") or {}).get("role"), choice.get("finish_reason")
    need_promise(role == "assistant", f"the role is {role!r}")
    need_promise(bool(text.strip()), "the content is empty")
    need_promise(reason in {"stop", "length"}, f"finish_reason is {reason!r}")
    model, created = answer.body.get("model"), answer.body.get("created")
    need_promise(model == session.model, f"asked for {session.model!r}, answered as {model!r}")
    need_promise(isinstance(created, int) and created > 0, f"created is {created!r}")
    return _passed(f"{text[:60]!r}, finish_reason {reason}, {prompt} + {completion} tokens")


def _completion(session: ApiSession) -> CheckOutcome:
    answer = session.complete("One, two, three, four,", max_tokens=_MAX_TOKENS)
    text, (prompt, completion, _) = api_answer_text(answer), api_answer_usage(answer)
    need_promise(bool(text.strip()), "the text is empty")
    return _passed(f"{text[:60]!r}, {prompt} + {completion} tokens")


def _streaming(session: ApiSession) -> CheckOutcome:
    session.ask(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    whole = session.ask(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    streamed = session.stream(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    text, reason = api_answer_text(whole), api_answer_choice(whole).get("finish_reason")
    same = streamed.text.rstrip(_HALF) == text.rstrip(_HALF)
    need_promise(same, f"streamed {streamed.text!r}, but in one piece {text!r}")
    need_promise(
        streamed.finish_reason == reason, f"finish_reason {streamed.finish_reason!r}, but in one piece {reason!r}"
    )
    need_promise(streamed.is_done, "the stream does not end with [DONE]")
    return _passed(f"the same {len(text)} characters in {streamed.n_chunks} events, then [DONE]")


def _streamed_usage(session: ApiSession) -> CheckOutcome:
    whole = api_answer_usage(session.ask(_CAPITAL, max_tokens=_ANSWER_TOKENS))
    usage = session.stream(_CAPITAL, max_tokens=_ANSWER_TOKENS, stream_options={"include_usage": True}).usage
    need_promise(bool(usage), "no chunk has a usage, though include_usage was asked for")
    streamed = tuple(usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    need_promise(streamed == whole, f"usage {streamed} in the stream, {whole} in one piece")
    return _passed(f"{whole[0]} + {whole[1]} tokens in both")


def _stop(session: ApiSession) -> CheckOutcome:
    """A stop string that begins within one token and ends within another must not leak, also when streamed."""
    session.ask(_STORY, max_tokens=_ANSWER_TOKENS)
    text = api_answer_text(session.ask(_STORY, max_tokens=_ANSWER_TOKENS))
    middle = len(text) // 2
    stop = text[middle : middle + 5]
    need_promise(bool(stop.strip()), f"the answer is too short for a stop string: {text!r}")
    wanted = text[: text.index(stop)]
    answer = session.ask(_STORY, max_tokens=_ANSWER_TOKENS, stop=[stop])
    streamed = session.stream(_STORY, max_tokens=_ANSWER_TOKENS, stop=[stop])
    found = (
        (api_answer_text(answer), api_answer_choice(answer).get("finish_reason")),
        (streamed.text, streamed.finish_reason),
    )
    for written, reason in found:
        need_promise(stop not in written, f"the stop string {stop!r} is in {written!r}")
        need_promise(reason == "stop", f"finish_reason is {reason!r} at the stop string {stop!r}")
        need_promise(written == wanted, f"wanted {wanted!r} up to {stop!r}, got {written!r}")
    return _passed(f"ended before {stop!r} after {len(wanted)} characters, in one piece and streamed")


def _max_tokens(session: ApiSession) -> CheckOutcome:
    answer = session.ask(_STORY, max_tokens=_MAX_TOKENS)
    reason, completion = api_answer_choice(answer).get("finish_reason"), api_answer_usage(answer)[1]
    need_promise(
        reason == "length", f"finish_reason is {reason!r} at max_tokens {_MAX_TOKENS}, after {completion} tokens"
    )
    need_promise(completion == _MAX_TOKENS, f"{completion} completion_tokens, {_MAX_TOKENS} were asked for")
    return _passed(f"length after exactly {completion} tokens")


def _usage_counts(session: ApiSession) -> CheckOutcome:
    short = api_answer_usage(session.complete("One, two,", max_tokens=1))[0]
    long = api_answer_usage(session.complete("One, two, three, four, five, six,", max_tokens=1))[0]
    need_promise(long > short, f"{long} prompt_tokens for the longer prompt, {short} for the shorter")
    counted = [_counted(session, "One, two,", short), _counted_chat(session)]
    return _passed(f"{short} and {long} prompt_tokens; {'; '.join(counted)}")


def _counted(session: ApiSession, prompt: str, used: int) -> str:
    """Compare the reported prompt_tokens with the count of the server's own tokenizer."""
    answer = session.wire.post("/tokenize", {"content": prompt, "add_special": True})
    tokens = answer.body.get("tokens") if answer.status == 200 else None
    if tokens is None:
        return "no tokenizer to ask"
    need_promise(
        len(tokens) == used, f"{used} prompt_tokens, but its tokenizer counts {len(tokens)}: {prompt[:EXCERPT]!r}"
    )
    return f"its tokenizer counts {used} too"


def _counted_chat(session: ApiSession) -> str:
    if not session.has_chat_template:
        return "no template to ask"
    body = session.chat_body(_CAPITAL, max_tokens=1)
    template = session.wire.post("/apply-template", body)
    if template.status != 200:
        return "no template to ask"
    used = api_answer_usage(session.wire.post(CHAT, body))[0]
    return f"of a chat, {_counted(session, str(template.body.get('prompt')), used)}"


def _seeds(session: ApiSession) -> CheckOutcome:
    def ask(seed: int) -> str:
        return api_answer_text(session.ask(_STORY, max_tokens=_ANSWER_TOKENS, temperature=1, seed=seed))

    ask(42)
    first, second, other = ask(42), ask(42), ask(43)
    need_promise(first == second, f"seed 42 wrote {first!r}, then {second!r}")
    differs = "another" if first != other else "the same"
    return _passed(f"seed 42 wrote the same {len(first)} characters twice, seed 43 {differs} text")


# ---- structure ---------------------------------------------------------------------------------------


def _json_schema(session: ApiSession) -> CheckOutcome:
    form, refusal = _schema_form(session)
    verdicts = {case.name: _asked(session, case, form) for case in CASES}
    rate = schema_rate(verdicts, form)
    said = (
        f"{_REFUSED} ({refusal}); as json_object with a schema, {schema_rate_text(rate)}"
        if refusal
        else schema_rate_text(rate)
    )
    kept = not refusal and rate.rate >= rate.gate
    return CheckOutcome("passed" if kept else "failed", said, schemas=rate)


def _asked(session: ApiSession, case: SchemaCase, form: str) -> SchemaVerdict:
    asked = {"max_tokens": _SCHEMA_TOKENS, "response_format": _response_format(form, case.schema)}
    return _judged(session.chat(f"{case.prompt} Answer in JSON.", **asked), case.schema)


def _schema_form(session: ApiSession) -> tuple[str, str]:
    """The form of response_format that the server accepts, and its refusal of the standard form ("": none)."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = session.chat("Is it?", max_tokens=1, response_format=_response_format("json_schema", schema))
    return ("json_schema", "") if answer.status == 200 else ("json_object", shown_api_answer(answer)[:EXCERPT])


def _response_format(form: str, schema: Schema) -> dict[str, object]:
    if form == "json_schema":
        return {"type": form, "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {"type": form, "schema": schema}


def _judged(answer: Answer, schema: Schema) -> SchemaVerdict:
    if answer.status != 200:
        return SchemaVerdict("refused", shown_api_answer(answer))
    choice = api_answer_choice(answer)
    content = (choice.get("message") or {}).get("content")
    return judge_schema_answer(str(content or ""), str(choice.get("finish_reason")), schema)


def _tool_calls(session: ApiSession) -> CheckOutcome:
    """Ask for a call, and if none comes, ask again with an example of a call in the conversation.

    llama-server's grammar allows any text before a required call (ggml-org/llama.cpp#27217), and a weak model writes
    text until max_tokens. Naming the tool does not help: llama-server treats that as "auto" (#26849).
    """
    if session.props.get("chat_template_caps", {}).get("supports_tools") is False:
        return CheckOutcome("not supported", "the model's chat template has no tools (chat_template_caps of /props)")
    said, is_call = _call(session, [])
    if is_call:
        return _passed(f"{said}, valid against the tool's schema", after_an_example=False)
    later, is_call = _call(session, _EXAMPLE)
    if is_call:
        finding = f"{later}, valid against the tool's schema, after an example of a call; without one, {said}"
        return _passed(finding, after_an_example=True)
    raise BrokenPromise(f"tool_choice 'required' gave no tool call but {said}; after an example of one, {later}")


def _call(session: ApiSession, before: list[dict[str, object]]) -> tuple[str, bool]:
    """The checked tool call of an answer and True; else what came instead, and False."""
    prompt = _TOOL_PROMPT.format(city="Paris", days=3)
    answer = session.chat(
        prompt, messages=[*before, {"role": "user", "content": prompt}], max_tokens=_TOOL_TOKENS,
        tools=[{"type": "function", "function": _TOOL}], tool_choice="required",
    )  # fmt: skip
    found = api_answer_choice(answer)
    calls = (found.get("message") or {}).get("tool_calls")
    if not calls:
        return f"{api_answer_text(answer)[:40]!r} (finish_reason {found.get('finish_reason')})", False
    function = calls[0].get("function") or {}
    name, arguments = function.get("name"), function.get("arguments")
    need_promise(name == _TOOL["name"], f"called {name!r}, but the only tool is {_TOOL['name']!r}")
    need_promise(isinstance(arguments, str), f"arguments are not a string of JSON: {arguments!r}")
    verdict = judge_schema_text(str(arguments), TOOL_PARAMETERS)
    need_promise(verdict.kind == "valid", f"arguments {arguments!r} are {verdict.kind}: {verdict.finding}")
    return f"{name}({arguments})", True


# ---- refusals ----------------------------------------------------------------------------------------


def _embeddings(session: ApiSession) -> CheckOutcome:
    answer = session.embed("hello")
    if answer.status == 200:
        vector = (answer.body.get("data") or [{}])[0].get("embedding")
        need_promise(bool(vector), f"200 without an embedding: {shown_api_answer(answer)}")
        return _passed(f"served: {len(vector)} numbers")
    refused = 400 <= answer.status < 500 or answer.status == 501
    need_promise(
        refused and bool(api_error_text(answer)), f"wanted 4xx or 501 with a reason, got {shown_api_answer(answer)}"
    )
    return _passed(f"refused: {answer.status} {api_error_text(answer)[:EXCERPT]}")


def _wrong_key(session: ApiSession) -> CheckOutcome:
    body = {**session.chat_body("Hello", max_tokens=1), "prompt": "Hello", "input": "Hello"}
    right = session.wire.key or ""
    for key, called in (*_STRANGERS, (right[:-1] or "x", "a cut key"), (right + "x", "a longer key")):
        stranger = session.wire.with_key(key)
        for path in _DOORS:
            answer = stranger.post(path, body)
            is_open = answer.status < 400 or "choices" in answer.body
            need_promise(not is_open, f"{path} answers {called}: {shown_api_answer(answer)}")
            wanted = answer.status == 401 or path not in (CHAT, COMPLETION)
            need_promise(wanted, f"{path} refuses {called} with {answer.status}, wanted 401")
    return _passed(f"401 for no key, a wrong, a cut and a longer one; {len(_DOORS)} paths refuse them")


def _oversized(session: ApiSession) -> CheckOutcome:
    n_words = (session.n_ctx or _UNKNOWN_CONTEXT) + 64
    answer = session.ask("word " * n_words, max_tokens=1)
    said = api_error_text(answer)
    # llama-server answers with 500 where a text is longer than the batch that computes it at once.
    statuses = (400,) if session.purpose == "generate" else (400, 500)
    need_promise(
        answer.status in statuses and bool(said),
        f"a prompt of {n_words} words: wanted 400 with a reason, got {shown_api_answer(answer)}",
    )
    numbers = {int(number) for number in re.findall(r"\d+", said.replace(",", ""))}
    is_known = session.n_ctx and session.purpose == "generate"
    names_context = session.n_ctx in numbers if is_known else any(number < n_words for number in numbers)
    names_prompt = any(number >= n_words for number in numbers)
    need_promise(names_context and names_prompt, f"the error does not name both sizes: {said[:EXCERPT]!r}")
    return _passed(f"{answer.status}: {said[:EXCERPT]}")


def _malformed(session: ApiSession) -> CheckOutcome:
    for text in ('{"messages": [', "", "[]", '{"messages": "Hello"}'):
        answer = session.wire.post_text(session.route, text)
        is_clear = 400 <= answer.status < 500 and bool(api_error_text(answer))
        need_promise(
            is_clear, f"the body {text!r}: wanted 4xx and a JSON error, got {shown_api_answer(answer) or 'nothing'}"
        )
    return _passed(f"4xx with a JSON error, the last {shown_api_answer(answer)}")


def _unknown_path(session: ApiSession) -> CheckOutcome:
    answers = session.wire.get("/v1/no-such-thing"), session.wire.post("/v1/no-such-thing", {})
    for answer in answers:
        need_promise(answer.status == 404, f"wanted 404, got {shown_api_answer(answer)}")
    return _passed("404, for GET and POST")


# ---- many at once ------------------------------------------------------------------------------------


def _concurrency(session: ApiSession) -> CheckOutcome:
    """Each client's prompt has another length, so an answer to another client's prompt shows in its usage."""
    def ask(number: int) -> Answer:
        return session.ask("Say it again:" + " word" * (number + 1), max_tokens=_MAX_TOKENS)

    alone = [api_answer_usage(ask(number))[0] for number in (0, _CLIENTS - 1)]
    started = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        answers = list(clients.map(ask, range(_CLIENTS)))
    total_s, slowest_s = time.perf_counter() - started, max(answer.duration_s for answer in answers)
    empty = [number for number, answer in enumerate(answers) if not api_answer_text(answer).strip()]
    need_promise(not empty, f"the answers of clients {empty} are empty")
    used = [api_answer_usage(answer)[0] for answer in answers]
    need_promise([used[0], used[-1]] == alone, f"prompt_tokens {used[0]} and {used[-1]}, but alone {alone}")
    need_promise(sorted(set(used)) == used, f"answers belong to other prompts: prompt_tokens {used}")
    finding = f"{_CLIENTS} clients answered in {format_elapsed(total_s)}, the slowest after {format_elapsed(slowest_s)}"
    return _passed(finding, total_s=total_s, slowest_s=slowest_s, clients=_CLIENTS)


# ---- checks of other modules -------------------------------------------------------------------------


def _told(check: Callable[[ApiSession], str]) -> Callable[[ApiSession], CheckOutcome]:
    return lambda session: _passed(check(session))


# ---- the table ---------------------------------------------------------------------------------------


_EMBED: Final[tuple[Purpose, ...]] = ("embed",)
_RERANK: Final[tuple[Purpose, ...]] = ("rerank",)
_VECTORS: Final = _EMBED + _RERANK
_ANY: Final[tuple[Purpose, ...]] = ("generate", *_VECTORS)


@dataclass(frozen=True)
class ApiCheck:
    """One promise, and the function that checks it."""

    name: str
    promise: str
    run: Callable[[ApiSession], CheckOutcome]
    needs_chat: bool = False  # not applicable to a base model
    takes_plain_text: bool = False  # applicable to an encoder-decoder all the same
    purposes: tuple[Purpose, ...] = ("generate",)
    needs_medium: Medium | None = None  # not applicable to a model that does not read it


# To add a check: add a row with a function of an ApiSession that raises BrokenPromise if the promise is not kept.
CHECKS: Final = (
    ApiCheck("health", "/health says 200 once the model is loaded, without a key", _health, purposes=_ANY),
    ApiCheck("models", "the model is listed", _models, purposes=_ANY),
    ApiCheck(
        "chat", "a chat is answered, with role, finish_reason, model, created and usage", _chat, needs_chat=True,
        takes_plain_text=True,
    ),
    ApiCheck("completion", "a text is continued", _completion),
    ApiCheck("streaming", "a stream adds up to the same answer as without streaming", _streaming),
    ApiCheck("streamed-usage", "a stream ends with the usage, if asked for", _streamed_usage),
    ApiCheck("stop", "a stop string ends the answer and is not part of it", _stop),
    ApiCheck("max-tokens", "max_tokens is the number of tokens", _max_tokens),
    ApiCheck("usage", "usage counts what the tokenizer counts", _usage_counts),
    ApiCheck("seeds", "the same seed writes the same text at temperature 1", _seeds),
    ApiCheck("json-schema", "answers conform to a JSON schema", _json_schema, needs_chat=True),
    ApiCheck("tool-calls", "a required tool is called with valid arguments", _tool_calls, needs_chat=True),
    ApiCheck(
        "picture", "a picture is read; what is not one, and an address, is refused", _told(check_picture),
        needs_chat=True, needs_medium="vision",
    ),
    ApiCheck(
        "sound", "a sound is read; what is not one is refused", _told(check_sound), needs_chat=True,
        needs_medium="audio",
    ),
    ApiCheck("embeddings", "embeddings are served, or refused with the reason", _embeddings, purposes=_ANY),
    ApiCheck("wrong-key", "a request without the right key gets no answer from the model", _wrong_key, purposes=_ANY),
    ApiCheck("oversized", "a prompt that is too long is refused, with both sizes", _oversized, purposes=_ANY),
    ApiCheck("malformed", "a body that is not a request is refused, with the reason", _malformed, purposes=_ANY),
    ApiCheck("unknown-path", "an unknown path is answered with 404", _unknown_path, purposes=_ANY),
    ApiCheck("concurrency", f"{_CLIENTS} clients at once are all answered", _concurrency),
    ApiCheck(
        "slow-clients", "idle connections do not block other clients, and end in seconds", _told(check_slow_clients),
        purposes=_ANY,
    ),
    ApiCheck("large-body", "a body that is too large is refused", _told(check_large_body), purposes=_ANY),
    ApiCheck(
        "closed-routes", "routes that change the server or show requests are closed", _told(check_closed_routes),
        purposes=_ANY,
    ),
    ApiCheck(
        "hostile-grammars", "a grammar that would end or stall the server is refused", _told(check_hostile_grammars)
    ),
    ApiCheck(
        "hostile-schemas", "a schema that would end or stall the server is refused", _told(check_hostile_schemas)
    ),
    ApiCheck("large-tokenize", "a text that is too large to tokenize is refused", _told(check_large_tokenize),
             purposes=_ANY),
)
# Those of models that embed texts or rank documents. Of the checks above they are asked what `purposes` says.
VECTOR_CHECKS: Final = (
    ApiCheck(
        "vectors", "every text has one vector, all of one size and of length 1", _told(check_vectors), purposes=_EMBED
    ),
    ApiCheck("vector-order", "a text has the same vector alone and in a batch", _told(check_vector_order),
             purposes=_EMBED),
    ApiCheck("vector-base64", "a vector in base64 is the same", _told(check_base64), purposes=_EMBED),
    ApiCheck("ranking", "every document has one score, whatever is ranked with it", _told(check_ranking),
             purposes=_RERANK),
    ApiCheck("wrong-input", "what is not a text is refused, with the reason", _told(check_wrong_input),
             purposes=_VECTORS),
    ApiCheck("vector-clients", f"{CLIENTS} clients at once get what each gets alone", _told(check_vector_clients),
             purposes=_VECTORS),
)


def api_checks_of(purpose: Purpose) -> tuple[ApiCheck, ...]:
    """The checks of a model's report, those among them that do not apply to it."""
    return (*CHECKS, *(check for check in VECTOR_CHECKS if purpose in check.purposes))
