"""Checks of structured output: answers that conform to a JSON schema, and calls of a tool."""

from __future__ import annotations

from typing import Final

from server.api_checks.launch import Answer
from server.api_checks.outcome import CheckOutcome, passed
from server.api_checks.schemas import (
    CASES,
    Schema,
    SchemaCase,
    SchemaVerdict,
    api_schema_rate_text,
    judge_schema_answer,
    judge_schema_text,
    schema_rate,
)
from server.api_checks.session import (
    EXCERPT,
    ApiSession,
    BrokenPromise,
    api_answer_choice,
    api_answer_text,
    need_promise,
    shown_api_answer,
)

_SCHEMA_TOKENS: Final = 160  # the longest answer that `CASES` allows has about 100
_TOOL_TOKENS: Final = 96
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


def check_json_schema(session: ApiSession) -> CheckOutcome:
    form, refusal = _schema_form(session)
    verdicts = {case.name: _schema_verdict_of_request(session, case, form) for case in CASES}
    rate = schema_rate(verdicts, form)
    said = (
        f"{_REFUSED} ({refusal}); as json_object with a schema, {api_schema_rate_text(rate)}"
        if refusal
        else api_schema_rate_text(rate)
    )
    kept = not refusal and rate.rate >= rate.gate
    return CheckOutcome("passed" if kept else "failed", said, schemas=rate)


def _schema_verdict_of_request(session: ApiSession, case: SchemaCase, form: str) -> SchemaVerdict:
    asked = {"max_tokens": _SCHEMA_TOKENS, "response_format": _response_format(form, case.schema)}
    return _schema_verdict_of_answer(session.chat(f"{case.prompt} Answer in JSON.", **asked), case.schema)


def _schema_form(session: ApiSession) -> tuple[str, str]:
    """The form of response_format that the server accepts, and its refusal of the standard form ("": none)."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = session.chat("Is it?", max_tokens=1, response_format=_response_format("json_schema", schema))
    return ("json_schema", "") if answer.status == 200 else ("json_object", shown_api_answer(answer)[:EXCERPT])


def _response_format(form: str, schema: Schema) -> dict[str, object]:
    if form == "json_schema":
        return {"type": form, "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {"type": form, "schema": schema}


def _schema_verdict_of_answer(answer: Answer, schema: Schema) -> SchemaVerdict:
    if answer.status != 200:
        return SchemaVerdict("refused", shown_api_answer(answer))
    choice = api_answer_choice(answer)
    content = (choice.get("message") or {}).get("content")
    return judge_schema_answer(str(content or ""), str(choice.get("finish_reason")), schema)


def check_tool_calls(session: ApiSession) -> CheckOutcome:
    """Ask for a call, and if none comes, ask again with an example of a call in the conversation.

    llama-server's grammar allows any text before a required call (ggml-org/llama.cpp#27217), and a weak model writes
    text until max_tokens. Naming the tool does not help: llama-server treats that as "auto" (#26849).
    """
    if session.props.get("chat_template_caps", {}).get("supports_tools") is False:
        return CheckOutcome("not supported", "the model's chat template has no tools (chat_template_caps of /props)")
    said, is_call = _tool_call_of_answer(session, [])
    if is_call:
        return passed(f"{said}, valid against the tool's schema", after_an_example=False)
    later, is_call = _tool_call_of_answer(session, _EXAMPLE)
    if is_call:
        finding = f"{later}, valid against the tool's schema, after an example of a call; without one, {said}"
        return passed(finding, after_an_example=True)
    raise BrokenPromise(f"tool_choice 'required' gave no tool call but {said}; after an example of one, {later}")


def _tool_call_of_answer(session: ApiSession, before: list[dict[str, object]]) -> tuple[str, bool]:
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
