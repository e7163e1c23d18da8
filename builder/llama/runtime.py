"""What stages ask llama.cpp about a model: one interface, implemented by llama-server and by llama-cpp-python."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.chat_template import Messages

CONTEXT_TOKENS: Final = 512  # enough for short prompts, and cheap for any model


class LlamaRuntime(Protocol):
    """One loaded model. Every method raises `StageFailure` when the model does not load."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Free the model."""

    @property
    def argv(self) -> tuple[str, ...]:
        """What was started, for the manifest: a command line, or the function that was called."""

    def version(self) -> str:
        """The version of this llama.cpp build."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens in the text are parsed, BOS and EOS added only if asked for."""

    def render_chat(self, messages: Messages) -> str:
        """The conversation as the GGUF's own chat template renders it, up to where the assistant begins.

        Raises:
            ChatRefused: the GGUF has no template, llama.cpp cannot run it, or the template raises.
            OverLimit: the template takes too much time or memory.
        """

    def check_template(self) -> None:
        """Check that llama.cpp can load the GGUF's templates, as a server does. A GGUF without templates passes.

        Raises:
            ChatRefused: llama.cpp does not accept them.
            OverLimit: they take too much time or memory.
        """

    def finite_logits(self, prompts: Sequence[str]) -> int:
        """Run the model on each prompt; returns how many rows of logits were checked.

        Raises:
            StageFailure: a logit is NaN or infinite.
        """

    def embeddings(self, texts: Sequence[str]) -> list[list[float]]:
        """The embedding of each text, pooled as the model is (`gguf_pooling`), of any length.

        At most `CONTEXT_TOKENS` tokens of a text.
        """

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """A reranker's score of each pair of a query and a document; `CONTEXT_TOKENS` as for embeddings."""

    def text_logprob(self, ids: Sequence[int]) -> float | None:
        """The log-probability, in nats, of these tokens after BOS (EOS where there is none); None: cannot tell.

        At most `CONTEXT_TOKENS` tokens, with the one before them.
        """


def llama_not_finite(prompt: str) -> StageFailure:
    """The failure for a prompt with NaN or infinite logits."""
    message = f"The model loads, but its logits for the prompt {prompt!r} are not finite."
    hint = "Values overflow in this precision: try OUTTYPE=bf16 or f32, or a quant with more bits."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-logits", message, hint)
