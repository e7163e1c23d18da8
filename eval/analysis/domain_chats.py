"""Conversations as the model reads them, and which of their characters the assistant writes.

The forms, in this order; the first that shows every conversation's answers is taken for the whole domain:

1. the model's own chat template, with the tools as it wants them;
2. the chat template, with the tools in the system message, calls as JSON, and their results as the user's messages: for
   templates that know no tools;
3. labelled text ("User: …"), for models without a template or with one that fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from eval.analysis.domain_texts import DomainDocument
from quantyard.protocol.measurements import DomainForm
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate

ANSWERS: Final = "answers"
CALLS: Final = "tool calls"
Message = Mapping[str, Any]
_IS_CALL: Final = "is_call"  # the key of a message whose calls are in its content
_LABELS: Final = {"system": "System", "user": "User", "assistant": "Assistant"}


class ChatNotShown(Exception):
    """A form does not show a conversation; the message says why."""


@dataclass(frozen=True)
class WrittenSpan:
    """Characters `start` to `end` (exclusive) of a conversation, which the assistant writes."""

    start: int
    end: int
    kind: str  # ANSWERS or CALLS


@dataclass(frozen=True)
class ShownChat:
    """The text of a conversation, and what the assistant writes of it."""

    text: str
    spans: tuple[WrittenSpan, ...]


@dataclass(frozen=True)
class ShownChats:
    """The conversations of a domain in one form, and why the forms before it were not taken."""

    form: DomainForm
    chats: tuple[ShownChat, ...]
    why_not: tuple[str, ...] = ()


def show_chats(documents: Sequence[DomainDocument], template: ChatTemplate | None) -> ShownChats:
    """The conversations in the first form that shows them all; labelled text always does."""
    forms: list[tuple[DomainForm, Callable[[DomainDocument], ShownChat]]] = []
    if template is not None:
        forms = [
            ("chat template", lambda document: _in_template(template, _calls_with(document, dict), document.tools)),
            ("chat template", lambda document: _in_template(template, _calls_with(document, str), document.tools)),
            ("chat template, tools as text", lambda document: _in_template(template, _tools_as_text(document), ())),
        ]
    why_not: list[str] = []
    for form, show in forms:
        try:
            return ShownChats(form, tuple(show(document) for document in documents), tuple(why_not))
        except (ChatNotShown, ChatRefused, OverLimit) as error:
            why_not.append(str(error))
            if not any(document.tools for document in documents):
                break  # the others differ in tools alone
    return ShownChats("labelled text", tuple(labelled_chat(document) for document in documents), tuple(why_not))


# ---- the model's template ----------------------------------------------------------------------------


def _in_template(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> ShownChat:
    try:
        return _templated_chat(template, messages, tools)
    except ChatRefused:
        if messages[0]["role"] != "system":
            raise
        return _templated_chat(template, _without_system_role(messages), tools)


def _templated_chat(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> ShownChat:
    """The whole conversation. What the assistant writes begins where the text differs from that of the messages before
    with the generation prompt, and ends where the text of the messages up to it does.
    """
    whole, spans = template.render(messages, add_generation_prompt=False, tools=tools), list[WrittenSpan]()
    if not all(str(tool.get("function", tool).get("name")) in whole for tool in tools):
        raise ChatNotShown("the chat template does not show the tools")
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:at], add_generation_prompt=True, tools=tools)
        after = template.render(messages[: at + 1], add_generation_prompt=False, tools=tools)
        start, end = (_common_length(text, whole) for text in (before, after))
        written = whole[start:end].rstrip()
        if all(words in written for words in _words_of(message)):
            spans.append(WrittenSpan(start, start + len(written), _written_kind(message)))
        elif message.get("tool_calls") or at == len(messages) - 1:  # other templates rewrite past answers, by thoughts
            raise ChatNotShown("the chat template does not show what the assistant writes")
    if not spans:
        raise ChatNotShown("the chat template does not show what the assistant writes")
    return ShownChat(whole, tuple(spans))


def _common_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    differs = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def _written_kind(message: Message) -> str:
    return CALLS if message.get("tool_calls") or message.get(_IS_CALL) else ANSWERS


def _words_of(message: Message) -> list[str]:
    """What must be found in the text of an assistant's message: its content, and the names that it calls."""
    content = str(message.get("content") or "").strip()
    return [content, *(str(call["function"]["name"]) for call in message.get("tool_calls") or ())]


def _without_system_role(messages: Sequence[Message]) -> list[Message]:
    """With the system message at the beginning of the user's first one, for templates that refuse that role."""
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


# ---- tools as text -----------------------------------------------------------------------------------


def _tools_as_text(document: DomainDocument) -> list[Message]:
    """The conversation without the role `tool` and the fields that describe tools."""
    first, messages = [], list(document.messages)
    if document.tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in document.tools)
        said = f"{messages.pop(0)['content']}\n\n" if messages[0]["role"] == "system" else ""
        first = [{"role": "system", "content": f"{said}Tools:\n{listed}"}]
    groups = groupby((_plain_message(message) for message in messages), key=lambda message: str(message["role"]))
    return [*first, *(_joined_messages(role, [*group]) for role, group in groups)]


def _calls_with(document: DomainDocument, kind: type[dict[str, Any] | str]) -> list[Message]:
    """With the arguments of calls as an object (as in Transformers) or as JSON text (as in OpenAI): a template
    wants one of the two.
    """
    messages = []
    for message in document.messages:
        calls = message.get("tool_calls") or ()
        changed = [{**call, "function": _function_with(call["function"], kind)} for call in calls]
        messages.append({**message, "tool_calls": changed} if calls else message)
    return messages


def _function_with(function: Mapping[str, Any], kind: type[dict[str, Any] | str]) -> dict[str, Any]:
    given = function["arguments"]
    arguments = json.loads(given) if isinstance(given, str) else given
    return {**function, "arguments": arguments if kind is dict else json.dumps(arguments, ensure_ascii=False)}


def _plain_message(message: Message) -> Message:
    content = str(message.get("content") or "").strip()
    if message["role"] == "tool":
        return {"role": "user", "content": f"Tool result:\n{content}"}
    calls = message.get("tool_calls") or ()
    functions = (_function_with(call["function"], dict) for call in calls)
    lines = [content] * bool(content) + [json.dumps(function, ensure_ascii=False) for function in functions]
    plain = {"role": message["role"], "content": "\n".join(lines)}
    return plain | ({_IS_CALL: True} if calls else {})


def _joined_messages(role: str, group: Sequence[Message]) -> Message:
    """One message in place of several in a row of one role, which many templates refuse."""
    joined = {"role": role, "content": "\n\n".join(str(message["content"]) for message in group)}
    return joined | ({_IS_CALL: True} if any(message.get(_IS_CALL) for message in group) else {})


# ---- labelled text -----------------------------------------------------------------------------------


def labelled_chat(document: DomainDocument) -> ShownChat:
    """The conversation as plain text, each message after its role."""
    text, spans = "", []
    for message in _tools_as_text(document):
        text += f"{_LABELS[message['role']]}: "
        if message["role"] == "assistant":
            spans.append(WrittenSpan(len(text), len(text) + len(message["content"]), _written_kind(message)))
        text += f"{message['content']}\n\n"
    return ShownChat(text, tuple(spans))
