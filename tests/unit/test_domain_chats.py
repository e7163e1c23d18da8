"""Conversations of a domain in every kind of chat template: what the assistant writes is found, or said to be not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from eval.analysis.domain_chat_spans import ANSWERS, CALLS, ShownChat
from eval.analysis.domain_chats import ShownChats, show_chats
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
# Those of models that think show thoughts of the last answer alone, of what follows the last question, or open them.
THOUGHTS = """{% for m in messages %}<|{{ m.role }}|>\
{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>\
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
PROMPTED_THOUGHTS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
EMPTY_THOUGHTS = """{% set last = namespace(at=0) %}{% for m in messages %}{% if m.role == 'user' %}\
{% set last.at = loop.index0 %}{% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}\
{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.index0 > last.at %}<think>

</think>

{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
# Other kinds.
NULL_CONTENT = WITH_TOOLS.replace("m.tool_calls or []", "((m.tool_calls or []) if m.content is none else [])")
ONLY_TOOLS = """{% if tools %}{{ tools | tojson }}{% endif %}""" + CHATML
ONLY_CALLS = WITH_TOOLS.replace("{% if tools %}", "{% if false %}")
LAST_QUESTION = """{% for m in messages %}{% if m.role == 'user' %}\
{% if tools and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}\
[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}[INST]{{ m.content }}[/INST]\
{% elif m.role == 'tool' %}[RESULT]{{ {'content': m.content} | tojson }}[/RESULT]\
{% elif m.role == 'system' %}{{ m.content }}\
{% elif m.tool_calls %}[CALLS]{{ m.tool_calls | tojson }}</s>{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"""
NEEDS_TOOLS = WITH_TOOLS.replace("{% if tools %}<tools>", "<tools>").replace("</tools>\n{% endif %}", "</tools>\n")
COLLECTS_CALLS = """{% set seen = namespace(names=[]) %}{% for m in messages %}{% for c in m.tool_calls or [] %}\
{% set _ = seen.names.append(c.function.name) %}{% endfor %}{% endfor %}""" + WITH_TOOLS
MAPS_TOOLS = WITH_TOOLS.replace("<tools>", "<tools>{{ tools | map(attribute='function') | tojson }}")
EOS_AT_THE_END = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""
IGNORES_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
CONTENT_AFTER_A_SPACE = """{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>\
{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"""
NO_MARKS = "{% for m in messages %}{{ m.content }}\n{% endfor %}"

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


@pytest.mark.parametrize(("template", "end"), [(THOUGHTS, "<|end|>"), (EMPTY_THOUGHTS, "<|im_end|>")])
def test_answers_are_scored_from_their_first_character_where_the_last_has_a_thought_before_it(
    show: Show, template: str, end: str
) -> None:
    found = show(template, CHAT)
    assert found.form == "chat template" and found.share == 1
    assert written(found.chats[0]) == [(ANSWERS, f"Blue.{end}"), (ANSWERS, f"Green, then.{end}")]


def test_calls_of_a_template_with_thoughts_are_scored_without_them(show: Show) -> None:
    call, answer = written(show(EMPTY_THOUGHTS, TOOLS).chats[0])
    words = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    assert call == (CALLS, words)
    assert answer == (ANSWERS, "Four degrees.<|im_end|>")


def test_what_follows_the_last_answer_alone_is_not_scored(show: Show) -> None:
    """Nor half of a token, where the ends of an earlier answer and the last have half of one in common."""
    found = show(EOS_AT_THE_END, CHAT)
    assert found.chats[0].text.endswith("<|end|>\n</s>")
    assert [text for _, text in written(found.chats[0])] == ["Blue.<|end|>", "Green, then.<|end|>"]


@pytest.mark.commands
@pytest.mark.parametrize("answer", ["if a <b", "[1, 2", "x < y and [", "see <this>", "- [ ] a\n- [x]"])
@pytest.mark.parametrize("template", [CHATML, EOS_AT_THE_END, CONTENT_AFTER_A_SPACE, NO_MARKS])
def test_an_answer_with_brackets_is_whole(show: Show, template: str, answer: str) -> None:
    said = {"role": "assistant", "content": answer}
    found = show(template, replace(CHAT, messages=(*CHAT.messages[:2], said, *CHAT.messages[3:])))
    (_, first), (_, last) = written(found.chats[0])
    assert found.form == "chat template" and found.share == 1
    assert first.lstrip().startswith(answer) and last.lstrip().startswith("Green, then.")


def test_an_answer_after_a_space_begins_with_it(show: Show) -> None:
    """As its first token does."""
    assert written(show(CONTENT_AFTER_A_SPACE, CHAT).chats[0])[0] == (ANSWERS, " Blue.</s>")


def test_an_answer_that_the_question_quotes_is_found_after_it(show: Show) -> None:
    asked = {"role": "user", "content": "Blue. or Green, then.?"}
    found = show(THOUGHTS, replace(CHAT, messages=(asked, *CHAT.messages[2:])))
    assert [text for _, text in written(found.chats[0])] == ["Blue.<|end|>", "Green, then.<|end|>"]


def test_a_template_that_ignores_the_system_message_gets_it_in_the_question(show: Show) -> None:
    found = show(IGNORES_SYSTEM, CHAT)
    assert found.form == "chat template" and "user\nBe brief.\n\nName a colour." in found.chats[0].text


def test_a_template_that_drops_most_answers_is_not_taken_and_one_that_drops_few_is_with_its_share(show: Show) -> None:
    only_last = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'assistant' or loop.last }}")
    found = show(only_last, CHAT)
    assert found.form == "labelled text" and "shows only 70.6 %" in found.why_not[-1]
    long = {"role": "assistant", "content": "Green, " * 50}
    found = show(only_last, replace(CHAT, messages=(*CHAT.messages[:4], long)))
    assert found.form == "chat template" and 0.9 < found.share < 1 and len(found.chats[0].spans) == 1


def with_text_arguments(document: DomainDocument) -> DomainDocument:
    """As OpenAI has the arguments of a call."""
    asked, called, *rest = document.messages
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    return replace(document, messages=(asked, {**called, "tool_calls": [{"id": "1", "function": function}]}, *rest))


@pytest.mark.commands
@pytest.mark.parametrize("document", [TOOLS, with_text_arguments(TOOLS)], ids=["object", "text"])
@pytest.mark.parametrize(
    "template", [WITH_TOOLS, ARGUMENTS_AS_TEXT, NULL_CONTENT, NEEDS_TOOLS, COLLECTS_CALLS, MAPS_TOOLS]
)
def test_calls_are_apart_from_answers_and_arguments_come_as_the_template_wants_them(
    show: Show, template: str, document: DomainDocument
) -> None:
    found = show(template, document)
    assert found.form == "chat template"
    (call, answer), text = written(found.chats[0]), found.chats[0].text
    assert call[0] == CALLS and call[1].startswith("<call>weather") and '{"city": "Oslo"}' in call[1]
    assert answer == (ANSWERS, "Four degrees.<|im_end|>")
    assert "<tools>" in text and '{"celsius": 4}' in text


@pytest.mark.parametrize("document", [TOOLS, replace(TOOLS, messages=(*TOOLS.messages, *CHAT.messages[1:]))])
def test_calls_are_found_where_the_template_moves_the_tools_to_the_last_question(
    show: Show, document: DomainDocument
) -> None:
    found = show(LAST_QUESTION, document)
    assert found.form == "chat template"
    call, answer = written(found.chats[0])[:2]
    assert call[0] == CALLS and call[1].startswith("[CALLS]") and call[1].endswith('{"city": "Oslo"}}}]</s>')
    assert answer == (ANSWERS, "Four degrees.</s>")


@pytest.mark.parametrize("document", [CHAT, TOOLS], ids=["chat", "tools"])
def test_a_template_that_goes_through_the_tools_without_asking_is_used_where_there_are_none(
    show: Show, document: DomainDocument
) -> None:
    """As in llama.cpp, where they are undefined; in transformers they are None."""
    assert show(NEEDS_TOOLS, document, CHAT).form == "chat template"


def test_calls_are_text_where_the_template_shows_the_tools_alone(show: Show) -> None:
    found = show(ONLY_TOOLS, TOOLS)
    assert found.form == "chat template, calls as text" and "does not show the tool calls" in found.why_not[-1]
    text, (call, answer) = found.chats[0].text, written(found.chats[0])
    assert call[0] == CALLS and json.loads(call[1].removesuffix("<|im_end|>"))["name"] == "weather"
    assert answer == (ANSWERS, "Four degrees.<|im_end|>")
    assert "<|im_start|>tool" in text and "Tools:\n" not in text


def test_calls_are_the_templates_own_where_it_shows_them_but_not_the_tools(show: Show) -> None:
    """The name of a tool in a call does not show the tool."""
    found = show(ONLY_CALLS, TOOLS)
    assert found.form == "chat template, tools as text" and "does not show the tools" in found.why_not[-1]
    assert written(found.chats[0])[0][1].startswith("<call>weather") and "Tools:\n" in found.chats[0].text


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
