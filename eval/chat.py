"""Conversations as the GGUF's own chat template renders them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from eval.model import GgufModel
from pipeline.contract import ExitCode
from pipeline.stage import StageFailure

Messages = Sequence[dict[str, str]]
_MARK: Final = "\x1dquantyard\x1d"  # stands for the end of the last message while a template is rendered


class ChatTemplate:
    """Renders messages; the sandbox and its filters are those of transformers."""

    def __init__(self, model: GgufModel) -> None:
        text = model.chat_template
        if not text:
            message = f"{model.path.name} has no chat template, and the suite asks for one."
            hint = "Measure it without: apply_chat_template: false in the suite."
            raise StageFailure(ExitCode.BAD_REQUEST, "chat-template", message, hint)
        self.text = text
        self._special = (model.special_text(model.eos), model.special_text(model.bos))

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The conversation's text, up to where the assistant begins, or open-ended after the last message.

        A template that refuses a system message is given the conversation without it, as lm-eval's `hf` does.

        Raises:
            StageFailure: `chat-template` (3): the template refuses the conversation.
        """
        try:
            return self._render(messages, add_generation_prompt)
        except Exception:  # templates raise what they like
            rest = [message for message in messages if message["role"] != "system"]
        try:
            return self._render(rest, add_generation_prompt)
        except Exception as error:
            message = f"The model's chat template refuses a conversation: {type(error).__name__}: {error}"
            hint = "Measure it without: apply_chat_template: false in the suite."
            raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "chat-template", message, hint) from error

    def _render(self, messages: Messages, add_generation_prompt: bool) -> str:
        if add_generation_prompt:
            return str(self._formatters[True](messages=_plain(messages)).prompt)
        *before, last = _plain(messages)
        open_end = {**last, "content": last["content"].rstrip() + _MARK}
        return str(self._formatters[False](messages=[*before, open_end]).prompt).partition(_MARK)[0]

    @cached_property
    def _formatters(self) -> dict[bool, Any]:
        """The template, compiled: with the assistant's beginning and without."""
        return {
            prompted: Jinja2ChatFormatter(self.text, *self._special, add_generation_prompt=prompted)
            for prompted in (True, False)
        }


def _plain(messages: Messages) -> list[Any]:
    return [dict(message) for message in messages]
