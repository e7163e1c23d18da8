"""What a chat template shows of a conversation, and where a system message goes that it does not show.

One rule for behaviour suites and for the texts of domains. It needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate

Message = Mapping[str, Any]


def chat_with_system_shown(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The text up to where the assistant begins.

    A system message that the template refuses or leaves out is put before the first question.

    Raises:
        ChatRefused: the template refuses the conversation both ways.
        OverLimit: see `ChatTemplate.render`.
    """
    if not begins_with_system_message(messages):
        return template.render(messages, add_generation_prompt=True, tools=tools)
    try:
        text = template.render(messages, add_generation_prompt=True, tools=tools)
    except ChatRefused:
        text = ""
    if text and is_shown_in(str(messages[0]["content"]).strip(), text):
        return text
    return template.render(without_system_role(messages), add_generation_prompt=True, tools=tools)


def begins_with_system_message(messages: Sequence[Message]) -> bool:
    """Whether a system message stands before a question, into which it can be moved."""
    return [message["role"] for message in messages[:2]] == ["system", "user"]


def without_system_role(messages: Sequence[Message]) -> list[Message]:
    """With the system message at the beginning of the user's first one, as llama.cpp has it for templates that refuse
    or do not show that role.
    """
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def are_tools_shown(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], text: str
) -> bool:
    """Whether the text of these messages and tools names every tool, and oftener than the messages do by themselves."""
    try:
        alone = template.render(messages, add_generation_prompt=True) if tools else ""
    except ChatRefused:  # a template for tools only
        alone = ""
    names = (str(tool.get("function", tool).get("name")) for tool in tools)
    return all(text.count(name) > alone.count(name) for name in names)


def is_shown_in(said: str, text: str) -> bool:
    """Whether a text holds what is said, as it is or within JSON."""
    return any(shape in text for shape in shapes_of_said(said))


def shapes_of_said(said: str) -> tuple[str, ...]:
    """What is said as it is, and as it stands within JSON."""
    return (said, *(json.dumps(said, ensure_ascii=escaped)[1:-1] for escaped in (False, True)))
