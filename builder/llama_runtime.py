"""Two ways to ask llama.cpp what it makes of a model: its server's binary, or llama-cpp-python.

`verify` needs three answers, and both give them: the token ids of a text, the text of a conversation, and
whether logits are finite. Which one is used follows from `Tools.llama_bin` alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from builder.llama_server import Server
from builder.tools import tools_of
from pipeline.contract import ExitCode
from pipeline.stage import Stage, StageFailure

Messages = Sequence[dict[str, str]]
CONTEXT_TOKENS: Final = 512  # plenty for a prompt of some words, and cheap for any model
_GENERATED_TOKENS: Final = 2  # the first row comes from the prompt alone, the second from a cached prompt


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
            ChatRefused: llama.cpp cannot run the template, or the template raises.
        """

    def finite_logits(self, prompts: Sequence[str]) -> int:
        """Run the model on each prompt; returns how many rows of logits were looked at.

        Raises:
            StageFailure: a logit is NaN or infinite.
        """


class ChatRefused(Exception):
    """llama.cpp does not render this conversation; the message says why."""


def open_runtime(stage: Stage, model: Path, threads: int) -> LlamaRuntime:
    """The runtime of this image or host; enter it to load the model (`threads` 0: as many as llama.cpp likes)."""
    llama_bin = tools_of(stage).llama_bin
    if llama_bin is None:
        from builder.llama_bindings import BindingsRuntime

        return BindingsRuntime(model, threads)
    return ServerRuntime(llama_bin / "llama-server", model, threads)


def not_finite(prompt: str) -> StageFailure:
    """The failure to raise when a prompt leads to NaN or infinite logits."""
    message = f"The model loads, but its logits for the prompt {prompt!r} are not finite."
    hint = "Values overflow in this precision: try OUTTYPE=bf16 or f32, or a quant with more bits."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-logits", message, hint)


class ServerRuntime:
    """llama-server on the loopback interface: started on entry, killed on exit.

    Entry does not wait for the model: what the caller does before its first question runs beside the loading.
    """

    def __init__(self, binary: Path, model: Path, threads: int) -> None:
        # Only what old and new servers know. --no-repack: a repacked copy would cost time and twice the memory.
        flags = ["--ctx-size", str(CONTEXT_TOKENS), "--parallel", "1", "--no-warmup", "--jinja", "--no-repack"]
        if threads:
            flags += ["--threads", str(threads)]
        self._server = Server([str(binary), "--model", str(model), *flags])

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop()

    @property
    def argv(self) -> tuple[str, ...]:
        """The server's command line."""
        return self._server.argv

    def version(self) -> str:
        """The `build_info` of the server."""
        _, answer = self._server.ask("GET", "/props")
        return str(answer.get("build_info", "unknown"))

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See `LlamaRuntime`."""
        tokens = self._ask("/tokenize", {"content": text, "add_special": add_special, "parse_special": True})["tokens"]
        return [int(token) for token in tokens]

    def render_chat(self, messages: Messages) -> str:
        """See `LlamaRuntime`."""
        status, answer = self._server.ask("POST", "/apply-template", {"messages": list(messages)})
        if status != 200:
            raise ChatRefused(_error_text(answer))
        return str(answer["prompt"])

    def finite_logits(self, prompts: Sequence[str]) -> int:
        """See `LlamaRuntime`. The server shows only the rows it samples from: the prompt's last and those after.

        It computes the probabilities of a row over its whole vocabulary, so that one NaN or +Inf among the
        logits makes each of them NaN, which JSON can only say as null.
        """
        rows = 0
        for prompt in prompts:
            found = self._logprobs(prompt)
            if not found or any(logprob is None for logprob in found):
                raise not_finite(prompt)
            rows += len(found)
        return rows

    def _logprobs(self, prompt: str) -> list[float | None]:
        body = {"prompt": self.tokenize(prompt, add_special=True), "n_predict": _GENERATED_TOKENS, "n_probs": 1}
        status, answer = self._server.ask("POST", "/completion", body | {"temperature": 0, "cache_prompt": False})
        if status != 200:  # newer servers refuse to sample from NaN
            raise self._server.failure(f"does not generate text: {_error_text(answer)}", "verify-logits")
        rows = answer.get("completion_probabilities", [])
        return [row["top_logprobs"][0]["logprob"] if row.get("top_logprobs") else row.get("logprob") for row in rows]

    def _ask(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        status, answer = self._server.ask("POST", path, body)
        if status != 200:
            raise self._server.failure(f"answers {path} with {status}: {_error_text(answer)}", "verify-load")
        return answer


def _error_text(answer: dict[str, Any]) -> str:
    error = answer.get("error", answer)
    message = error.get("message") if isinstance(error, dict) else None
    return str(message) if message else json.dumps(error)
