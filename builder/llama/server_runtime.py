"""llama-server as a `LlamaRuntime`, for the containers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from builder.llama.runtime import CONTEXT_TOKENS, llama_not_finite
from builder.llama.server import LlamaServer
from builder.llama.template_server import TemplateServer, llama_server_error
from quantyard.sandbox.chat_template import ChatRefused, Messages

_HARMLESS_TEMPLATE: Final = "chatml"  # llama.cpp's own, by name
_TEXTS_AT_ONCE: Final = 16
_GENERATED_TOKENS: Final = 2  # the first row comes from the prompt alone, the second from a cached prompt


class ServerRuntime:
    """llama-server on the loopback interface: started on entry, killed on exit.

    It never runs the model's own chat template, which could hang it: `templates` renders that in a limited process.
    Entering does not wait for the model, so the caller's work before its first question overlaps with the loading.
    """

    def __init__(
        self, binary: Path, model: Path, threads: int, templates: TemplateServer | None, more: Sequence[str] = ()
    ) -> None:
        # Only flags that old and new servers know. --no-repack: a repacked copy costs time and doubles the memory.
        flags = ["--ctx-size", str(CONTEXT_TOKENS), "--parallel", "1", "--no-warmup", "--no-repack"]
        flags += ["--jinja", "--chat-template", _HARMLESS_TEMPLATE]
        flags += more
        if threads:
            flags += ["--threads", str(threads)]
        self._server = LlamaServer([str(binary), "--model", str(model), *flags])
        self._templates = templates

    def __enter__(self) -> Self:
        try:
            self._server.start()
            if self._templates:
                self._templates.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._server.stop()
        if self._templates:
            self._templates.stop()

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
        if self._templates is None:
            raise ChatRefused("the GGUF has no chat template")
        return self._templates.render(messages)

    def check_template(self) -> None:
        """See `LlamaRuntime`."""
        if self._templates:
            self._templates.check()

    def finite_logits(self, prompts: Sequence[str]) -> int:
        """See `LlamaRuntime`. The server reports only the rows it samples from: the prompt's last and those after.

        Its softmax runs over the whole vocabulary, so one NaN or +Inf logit makes every probability of the row NaN,
        and the server writes NaN as null.
        """
        rows = 0
        for prompt in prompts:
            found = self._logprobs(prompt)
            if not found or any(logprob is None for logprob in found):
                raise llama_not_finite(prompt)
            rows += len(found)
        return rows

    def embeddings(self, texts: Sequence[str]) -> list[list[float]]:
        """See `LlamaRuntime`."""
        found: list[list[float]] = []
        for at in range(0, len(texts), _TEXTS_AT_ONCE):
            rows = self._ask("/v1/embeddings", {"input": [*texts[at : at + _TEXTS_AT_ONCE]]})["data"]
            found += [row["embedding"] for row in sorted(rows, key=lambda row: int(row["index"]))]
        return found

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See `LlamaRuntime`."""
        found = []
        for query, document in pairs:
            answer = self._ask("/v1/rerank", {"query": query, "documents": [document]})
            found.append(float(answer["results"][0]["relevance_score"]))
        return found

    def text_logprob(self, ids: Sequence[int]) -> float | None:
        """None: llama-server shows no probabilities of a prompt's own tokens."""
        del ids
        return None

    def _logprobs(self, prompt: str) -> list[float | None]:
        body = {"prompt": self.tokenize(prompt, add_special=True), "n_predict": _GENERATED_TOKENS, "n_probs": 1}
        status, answer = self._server.ask("POST", "/completion", body | {"temperature": 0, "cache_prompt": False})
        if status != 200:  # newer servers refuse to sample from NaN
            raise self._server.failure(f"does not generate text: {llama_server_error(answer)}", "verify-logits")
        rows = answer.get("completion_probabilities", [])
        return [row["top_logprobs"][0]["logprob"] if row.get("top_logprobs") else row.get("logprob") for row in rows]

    def _ask(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        status, answer = self._server.ask("POST", path, body)
        if status != 200:
            raise self._server.failure(f"answers {path} with {status}: {llama_server_error(answer)}", "verify-load")
        return answer
