"""Renders scenarios with the GGUF's own chat template, as llama.cpp's server does.

A template that does not show tools gets them in the system message, with the form of a call in JSON; one that refuses
or leaves out a system message gets it before the question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from eval.llama.chat_shown import Message, are_tools_shown, chat_with_system_shown
from eval.llama.model import GgufModel
from eval.scenarios.scenario import Scenario, scenario_tools
from quantyard.formatting.numbers import format_count
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate, sandbox_template_failure

_TOOLS: Final = """\
You can call these functions:

{tools}

To call functions, answer with JSON alone: {{"tool_calls": [{{"name": "…", "arguments": {{…}}}}]}}. Call only what the \
user needs; if no function fits, answer in words."""


class UnfitTemplate(Exception):
    """The model cannot be asked; the message says why, as half a sentence."""


class ScenarioPrompts:
    """Prompts for one model.

    Raises:
        UnfitTemplate: the model has no chat template, or one that cannot hold a conversation.
    """

    def __init__(self, model: GgufModel) -> None:
        if model.has_encoder:
            raise UnfitTemplate("it is an encoder-decoder, which has no chat")
        self.text = model.chat_template or ""
        if not self.text:
            raise UnfitTemplate("it has no chat template")
        self._model = model
        self._template = ChatTemplate(self.text, model.special_text(model.bos), model.special_text(model.eos))
        self._knows_tools: bool | None = None

    def close(self) -> None:
        """End the process that renders."""
        self._template.close()

    def prompt(self, scenario: Scenario) -> str:
        """The text that the model continues.

        Raises:
            UnfitTemplate: the template refuses the conversation, or the model's context is too short for it.
        """
        text, longest = self._rendered(scenario), self._model.n_ctx_train
        if (n_tokens := len(self._model.tokenize(text, add_special=False))) >= longest:
            context, asked = format_count(longest), format_count(n_tokens)
            reason = f"its context of {context} tokens is too short for the question {scenario.id} ({asked})"
            raise UnfitTemplate(reason)
        return text

    def _rendered(self, scenario: Scenario) -> str:
        tools = [scenario_tools()[name] for name in scenario.tools]
        if tools and self._takes_tools(tools):
            return self._conversation(scenario, scenario.system, tools)
        offered = _TOOLS.format(tools="\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools))
        system = "\n\n".join(part for part in (scenario.system, offered if tools else "") if part)
        return self._conversation(scenario, system, ())

    def _takes_tools(self, tools: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template shows the tools that it is given."""
        if self._knows_tools is None:
            ask: list[Message] = [{"role": "user", "content": "?"}]
            try:
                text = self._template.render(ask, add_generation_prompt=True, tools=tools)
                self._knows_tools = are_tools_shown(self._template, ask, tools, text)
            except ChatRefused:
                self._knows_tools = False
            except OverLimit as error:
                raise sandbox_template_failure(str(error)) from error
        return self._knows_tools

    def _conversation(self, scenario: Scenario, system: str, tools: Sequence[Mapping[str, Any]]) -> str:
        turns = [turn for said in scenario.history for turn in zip(("user", "assistant"), said, strict=True)]
        messages = [{"role": role, "content": text} for role, text in (*turns, ("user", scenario.user))]
        first = [{"role": "system", "content": system}] if system else []
        try:
            return chat_with_system_shown(self._template, [*first, *messages], tools)
        except ChatRefused as error:
            refused = " ".join(str(error).split())
            raise UnfitTemplate(f"its chat template refuses a conversation ({refused})") from error
        except OverLimit as error:
            raise sandbox_template_failure(str(error)) from error
