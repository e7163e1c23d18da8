"""Renders conversations with the GGUF's own chat template."""

from __future__ import annotations

from typing import Final

from eval.llama.model import GgufModel
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import ChatRefused, Messages, sandbox_template_failure
from quantyard.sandbox.chat_template import ChatTemplate as Template

_MARK: Final = "\x1dquantyard\x1d"  # marks the end of the last message, so that what the template adds can be cut off


class ChatTemplate:
    """Renders messages as lm-eval expects; the sandbox has the same filters as transformers."""

    def __init__(self, model: GgufModel) -> None:
        text = model.chat_template
        if not text:
            message = f"{model.path.name} has no chat template, and the suite asks for one."
            hint = "Measure without it: set apply_chat_template: false in the suite."
            raise StageFailure(ExitCode.BAD_REQUEST, "chat-template", message, hint)
        self.text = text
        self._template = Template(text, model.special_text(model.bos), model.special_text(model.eos))

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The conversation's text, up to where the assistant begins, or up to the end of the last message.

        If the template refuses a system message, the conversation is rendered without it, as lm-eval's `hf` does.

        Raises:
            StageFailure: `chat-template` (3): the template refuses the conversation, or takes too much time or memory.
        """
        rest = [message for message in messages if message["role"] != "system"]
        try:
            try:
                return self._render(messages, add_generation_prompt)
            except ChatRefused:
                return self._render(rest, add_generation_prompt)
        except ChatRefused as error:
            message = f"The model's chat template refuses a conversation: {error}"
            hint = "Measure without it: set apply_chat_template: false in the suite."
            raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "chat-template", message, hint) from error
        except OverLimit as error:
            raise sandbox_template_failure(str(error)) from error

    def _render(self, messages: Messages, add_generation_prompt: bool) -> str:
        if add_generation_prompt:
            return self._template.render(messages, add_generation_prompt=True)
        if not messages:
            raise ChatRefused("it has no messages")
        *before, last = messages
        open_end = {**last, "content": last["content"].rstrip() + _MARK}
        return self._template.render([*before, open_end], add_generation_prompt=False).partition(_MARK)[0]
