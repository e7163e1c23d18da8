"""Conversations of a domain in every kind of chat template: what the assistant writes is found, or said to be not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from eval.analysis.domain_chats import ANSWERS, CALLS, ShownChat, ShownChats, show_chats
from eval.analysis.domain_texts import DomainDocument
from quantyard.sandbox.chat_template import ChatTemplate

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WITH_TOOLS = """{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or "" }}{% for c in m.tool_calls or [] %}\
<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ARGUMENTS_AS_TEXT = WITH_TOOLS.replace("c.function.arguments | tojson", "'args ' + c.function.arguments")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
THOUGHTS = """{% for m in messages %}<|{{ m.role }}|>\
{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>\
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""  # of the last answer alone
PROMPTED_THOUGHTS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")

CHAT = DomainDocument("a", messages=(
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."}, {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Green, then."},
))  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOOLS = DomainDocument("b", tools=(TOOL,), messages=(
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
    {"role": "tool", "tool_call_id": "1", "content": '{"celsius": 4}'},
    {"role": "assistant", "content": "Four degrees."},
))  # fmt: skip
Show = Callable[..., ShownChats]


@pytest.fixture
def show() -> Iterator[Show]:
    opened: list[ChatTemplate] = []

    def shown(template: str | None, *documents: DomainDocument) -> ShownChats:
        if template is not None:
            opened.append(ChatTemplate(template, "<s>", "</s>"))
        return show_chats(documents, opened[-1] if opened else None)

    yield shown
    for template in opened:
        template.close()


def written(chat: ShownChat) -> list[tuple[str, str]]:
    return [(span.kind, chat.text[span.start : span.end]) for span in chat.spans]


@pytest.mark.parametrize("template", [CHATML, WITH_TOOLS, NO_SYSTEM, PROMPTED_THOUGHTS])
def test_what_the_assistant_writes_is_its_answers_with_their_ends(show: Show, template: str) -> None:
    found = show(template, CHAT)
    assert found.form == "chat template" and not found.why_not
    assert written(found.chats[0]) == [(ANSWERS, "Blue.<|im_end|>"), (ANSWERS, "Green, then.<|im_end|>")]
    assert "Be brief." in found.chats[0].text, "also where the role is refused"


def test_an_answer_that_the_template_rewrites_later_is_not_scored_but_the_last_is(show: Show) -> None:
    found = show(THOUGHTS, CHAT)
    assert found.form == "chat template"
    assert written(found.chats[0])[-1] == (ANSWERS, "<think></think>Green, then.<|end|>")


def with_text_arguments(document: DomainDocument) -> DomainDocument:
    """As OpenAI has the arguments of a call."""
    asked, called, *rest = document.messages
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    return replace(document, messages=(asked, {**called, "tool_calls": [{"id": "1", "function": function}]}, *rest))


@pytest.mark.parametrize("document", [TOOLS, with_text_arguments(TOOLS)], ids=["object", "text"])
@pytest.mark.parametrize("template", [WITH_TOOLS, ARGUMENTS_AS_TEXT])
def test_calls_are_apart_from_answers_and_arguments_come_as_the_template_wants_them(
    show: Show, template: str, document: DomainDocument
) -> None:
    found = show(template, document)
    assert found.form == "chat template"
    (call, answer), text = written(found.chats[0]), found.chats[0].text
    assert call[0] == CALLS and call[1].startswith("<call>weather") and '{"city": "Oslo"}' in call[1]
    assert answer == (ANSWERS, "Four degrees.<|im_end|>")
    assert "<tools>" in text and '{"celsius": 4}' in text


def test_a_template_without_tools_reads_them_as_text(show: Show) -> None:
    found = show(CHATML, CHAT, TOOLS)
    assert found.form == "chat template, tools as text"
    assert found.why_not and "does not show the tools" in found.why_not[-1]
    assert written(found.chats[0])[0] == (ANSWERS, "Blue.<|im_end|>"), "one form for the whole domain"
    kind, call = written(found.chats[1])[0]
    assert kind == CALLS and json.loads(call.removesuffix("<|im_end|>"))["arguments"] == {"city": "Oslo"}
    assert "Tools:\n" in found.chats[1].text and "Tool result:\n" in found.chats[1].text


@pytest.mark.parametrize(("template", "why"), [
    ("{% for m in messages %}{{ m.content", "TemplateSyntaxError"),
    ("{{ raise_exception('never') }}", "never"),
    ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not show what the assistant writes"),
    ("a text", "does not show what the assistant writes"),
])  # fmt: skip
def test_a_template_that_fails_gives_labelled_text_and_the_reason(show: Show, template: str, why: str) -> None:
    found = show(template, CHAT)
    assert found.form == "labelled text" and why in found.why_not[-1]
    assert written(found.chats[0]) == [(ANSWERS, "Blue."), (ANSWERS, "Green, then.")]


def test_without_a_template_it_is_labelled_text(show: Show) -> None:
    found = show(None, CHAT, TOOLS)
    assert found.form == "labelled text" and not found.why_not
    assert found.chats[0].text.startswith("System: Be brief.\n\nUser: Name a colour.\n\nAssistant: Blue.")
    assert [kind for kind, _ in written(found.chats[1])] == [CALLS, ANSWERS]


def test_parallel_results_of_tools_are_one_message_as_text(show: Show) -> None:
    """Many templates refuse two messages of one role in a row."""
    result = {"role": "tool", "tool_call_id": "2", "content": "no"}
    messages = (*TOOLS.messages[:3], result, TOOLS.messages[3])
    found = show(CHATML, DomainDocument("c", messages=messages, tools=TOOLS.tools))
    assert found.chats[0].text.count("<|im_start|>user") == 2
