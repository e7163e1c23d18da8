"""Conversations as the model reads them, in the first of these forms that shows what the assistant writes:

1. the model's own chat template, with tools and calls as it wants them;
2. the chat template, with the tools as it wants them and calls as JSON in answers: for templates that show only tools;
3. the chat template, with the tools in the system message, and calls as it wants them or, with their results as the
   user's messages, as JSON: for templates that do not show tools;
4. labelled text ("User: …"), for models without a template or with one that fails.

One form is taken for the whole domain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from typing import Any, Final

from eval.analysis.domain_chat_spans import (
    IS_CALL,
    ChatNotShown,
    ShownChat,
    WrittenSpan,
    templated_chat,
    written_kind,
)
from eval.analysis.domain_texts import DomainDocument
from eval.llama.chat_shown import Message, begins_with_system_message, without_system_role
from quantyard.formatting.numbers import format_percent
from quantyard.protocol.divergence_results import DomainForm
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate

_LABELS: Final = {"system": "System", "user": "User", "assistant": "Assistant"}
_LEAST_SHARE: Final = 0.9  # of what the assistant says; a form that shows less is not taken


@dataclass(frozen=True)
class ShownChats:
    """The conversations of a domain in one form, and why the forms before it were not taken."""

    form: DomainForm
    chats: tuple[ShownChat, ...]
    why_not: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of what the assistant says that the form shows, by characters."""
        said = sum(chat.n_said for chat in self.chats)
        return sum(chat.n_shown for chat in self.chats) / said if said else 1.0


def show_chats(documents: Sequence[DomainDocument], template: ChatTemplate | None) -> ShownChats:
    """The conversations in the first form that shows them; labelled text always does."""
    why_not: dict[DomainForm, str] = {}
    labelled = ShownChats("labelled text", tuple(map(labelled_chat, documents)))
    if template is None:
        return labelled
    for form, messages_of, is_given_tools in _template_ways():
        try:
            chats = (
                _in_template(template, messages_of(one), one.tools if is_given_tools else ()) for one in documents
            )
            found = ShownChats(form, tuple(chats))
        except (ChatNotShown, ChatRefused) as error:
            why_not.setdefault(form, str(error))
        except OverLimit as error:
            return replace(labelled, why_not=(str(error),))
        else:
            if found.share >= _LEAST_SHARE:
                return replace(found, why_not=tuple(why for other, why in why_not.items() if other != form))
            shown = format_percent(found.share)
            why_not.setdefault(form, f"the chat template shows only {shown} of what the assistant writes")
        if not any(document.tools for document in documents):
            break  # the other ways differ in tools alone
    return replace(labelled, why_not=tuple(why_not.values()))


# ---- the model's template ----------------------------------------------------------------------------


def _template_ways() -> Iterator[tuple[DomainForm, Callable[[DomainDocument], Sequence[Message]], bool]]:
    """What to try, in this order: the form, the messages in it, and whether the template is given the tools.

    Templates differ in how they want a call: its arguments as an object (as in Transformers) or as JSON text (as in
    OpenAI), and its content as "" or null.
    """
    for empty, as_json in product(("", None), (False, True)):
        yield "chat template", partial(_with_calls, empty=empty, as_json=as_json), True
    yield "chat template, calls as text", _with_calls_as_text, True
    for empty, as_json in product(("", None), (False, True)):
        yield "chat template, tools as text", partial(_with_listed_tools, empty=empty, as_json=as_json), False
    yield "chat template, tools as text", _with_tools_as_text, False


def _in_template(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> ShownChat:
    try:
        return templated_chat(template, messages, tools)
    except (ChatRefused, ChatNotShown):
        if not begins_with_system_message(messages):
            raise
        return templated_chat(template, without_system_role(messages), tools)


def _with_calls(document: DomainDocument, empty: str | None, *, as_json: bool) -> list[Message]:
    """With the arguments of calls as JSON text or as an object, and the content of calls without one as `empty`."""
    return [_with_own_calls(message, empty, as_json=as_json) for message in document.messages]


def _with_own_calls(message: Message, empty: str | None, *, as_json: bool) -> Message:
    if not (calls := message.get("tool_calls")):
        return message
    own = [{**call, "function": _function_with(call["function"], as_json=as_json)} for call in calls]
    return {**message, "tool_calls": own, "content": message.get("content") or empty}


def _function_with(function: Mapping[str, Any], *, as_json: bool) -> dict[str, Any]:
    given = function["arguments"]
    arguments = json.loads(given) if isinstance(given, str) else given
    return {**function, "arguments": json.dumps(arguments, ensure_ascii=False) if as_json else arguments}


# ---- tools as text -----------------------------------------------------------------------------------


def _with_calls_as_text(document: DomainDocument) -> list[Message]:
    return [_call_as_text(message) for message in document.messages]


def _with_listed_tools(document: DomainDocument, empty: str | None = "", *, as_json: bool = False) -> list[Message]:
    """With the tools in the system message."""
    messages = _with_calls(document, empty, as_json=as_json)
    if not document.tools:
        return messages
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in document.tools)
    said = f"{messages.pop(0)['content']}\n\n" if messages[0]["role"] == "system" else ""
    return [{"role": "system", "content": f"{said}Tools:\n{listed}"}, *messages]


def _with_tools_as_text(document: DomainDocument) -> list[Message]:
    """The conversation without the role `tool` and the fields that describe tools."""
    plain = (_result_as_text(_call_as_text(message)) for message in _with_listed_tools(document))
    return [_joined_messages(role, [*group]) for role, group in groupby(plain, key=lambda m: str(m["role"]))]


def _call_as_text(message: Message) -> Message:
    if not (calls := message.get("tool_calls")):
        return message
    content = str(message.get("content") or "").strip()
    functions = (_function_with(call["function"], as_json=False) for call in calls)
    lines = [content] * bool(content) + [json.dumps(function, ensure_ascii=False) for function in functions]
    return {"role": message["role"], "content": "\n".join(lines), IS_CALL: True}


def _result_as_text(message: Message) -> Message:
    content = str(message.get("content") or "").strip()
    if message["role"] == "tool":
        return {"role": "user", "content": f"Tool result:\n{content}"}
    return {**message, "content": content}


def _joined_messages(role: str, group: Sequence[Message]) -> Message:
    """One message in place of several in a row of one role, which many templates refuse."""
    joined = {"role": role, "content": "\n\n".join(str(message["content"]) for message in group)}
    return joined | ({IS_CALL: True} if any(message.get(IS_CALL) for message in group) else {})


# ---- labelled text -----------------------------------------------------------------------------------


def labelled_chat(document: DomainDocument) -> ShownChat:
    """The conversation as plain text, each message after its role."""
    text, spans = "", []
    for message in _with_tools_as_text(document):
        text += f"{_LABELS[message['role']]}: "
        if message["role"] == "assistant":
            spans.append(WrittenSpan(len(text), len(text) + len(message["content"]), written_kind(message)))
        text += f"{message['content']}\n\n"
    return ShownChat(text, tuple(spans))
