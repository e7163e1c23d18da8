"""Whether a chat template shows tools and system messages, in every kind of template: one rule for all that renders."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from eval.llama.chat_shown import are_tools_shown, chat_with_system_shown
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate
from tests.unit.test_domain_chats import CHATML, MAPS_TOOLS, NEEDS_TOOLS, NO_SYSTEM, ONLY_TOOLS, WITH_TOOLS

LEAVES_OUT_SYSTEM = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
SYSTEM_IN_JSON = CHATML.replace("{{ m.content }}", "{{ m.content | tojson }}")
FIRST_MESSAGE_ONLY = "{{ messages[0].content }}"
SYSTEM = {"role": "system", "content": "Answer in “verse”."}
QUESTION = {"role": "user", "content": "What is a pump?"}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "mail")]
Opened = Callable[[str], ChatTemplate]


@pytest.fixture
def opened() -> Iterator[Opened]:
    templates: list[ChatTemplate] = []

    def open_template(text: str) -> ChatTemplate:
        templates.append(ChatTemplate(text, "<s>", "</s>"))
        return templates[-1]

    yield open_template
    for template in templates:
        template.close()


@pytest.mark.parametrize("text", [CHATML, SYSTEM_IN_JSON, FIRST_MESSAGE_ONLY])
def test_a_system_message_stays_where_the_template_shows_it(opened: Opened, text: str) -> None:
    template = opened(text)
    assert chat_with_system_shown(template, [SYSTEM, QUESTION]) == template.render(
        [SYSTEM, QUESTION], add_generation_prompt=True
    )


@pytest.mark.parametrize("text", [NO_SYSTEM, LEAVES_OUT_SYSTEM])
def test_a_system_message_that_is_refused_or_left_out_stands_before_the_question(opened: Opened, text: str) -> None:
    shown = chat_with_system_shown(opened(text), [SYSTEM, QUESTION])
    assert "<|im_start|>user\nAnswer in “verse”.\n\nWhat is a pump?<|im_end|>" in shown


def test_a_conversation_that_is_refused_both_ways_is_refused(opened: Opened) -> None:
    template = opened("{{ raise_exception('never') }}")
    for messages in ([SYSTEM, QUESTION], [QUESTION]):
        with pytest.raises(ChatRefused, match="never"):
            chat_with_system_shown(template, messages)


@pytest.mark.commands
@pytest.mark.parametrize(
    ("text", "are_shown"),
    [(WITH_TOOLS, True), (MAPS_TOOLS, True), (ONLY_TOOLS, True), (NEEDS_TOOLS, True), (CHATML, False)],
)
@pytest.mark.parametrize("said", ["What is a pump?", "Please add this and mail it."])
def test_tools_are_shown_only_where_the_template_itself_names_them(
    opened: Opened, text: str, are_shown: bool, said: str
) -> None:
    template, messages = opened(text), [{"role": "user", "content": said}]
    rendered = template.render(messages, add_generation_prompt=True, tools=TOOLS)
    assert are_tools_shown(template, messages, TOOLS, rendered) == are_shown
