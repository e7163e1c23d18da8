"""The questions that stages ask llama.cpp about a model, answered by llama-server or by llama-cpp-python."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.chat_template import Messages

CONTEXT_TOKENS: Final = 512  # plenty for a prompt of some words, and cheap for any model


class LlamaRuntime(Protocol):
    """One loaded model. Every method raises `StageFailure` when the model does not load."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Free the model, whatever happened."""

    @property
    def argv(self) -> tuple[str, ...]:
        """What was started, for the manifest: a command line, or the function that was called."""

    def version(self) -> str:
        """What llama.cpp calls this build."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens in the text are parsed, BOS and EOS added only if asked for."""

    def render_chat(self, messages: Messages) -> str:
        """The conversation as the GGUF's own chat template renders it, up to where the assistant begins.

        Raises:
            ChatRefused: there is none, llama.cpp cannot run it, or it raises.
            OverLimit: it takes too long or too much.
        """

    def check_template(self) -> None:
        """Whether llama.cpp can load the GGUF's templates, as a server does. A GGUF without templates passes.

        Raises:
            ChatRefused: it does not accept them.
            OverLimit: they take too long or too much.
        """

    def finite_logits(self, prompts: Sequence[str]) -> int:
        """Run the model on each prompt; returns how many rows of logits were looked at.

        Raises:
            StageFailure: a logit is NaN or infinite.
        """


def llama_not_finite(prompt: str) -> StageFailure:
    """The failure to raise when a prompt leads to NaN or infinite logits."""
    message = f"The model loads, but its logits for the prompt {prompt!r} are not finite."
    hint = "Values overflow in this precision: try OUTTYPE=bf16 or f32, or a quant with more bits."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-logits", message, hint)
