"""The forms of answers: completions and chats of the OpenAI API, whole and as chunks; errors; metrics."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Final

_ERRORS: Final = {  # status → error type; any other status is an invalid request
    401: "authentication_error", 404: "not_found_error", 500: "server_error", 501: "not_supported_error",
}  # fmt: skip


@dataclass(frozen=True)
class AnswerForm:
    """The form of one answer: a chat's or a completion's."""

    model: str
    is_chat: bool
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_urlsafe(18))

    def whole(self, text: str, finish_reason: str, usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece."""
        said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text, "logprobs": None}
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._around(kind, [{"index": 0, **said, "finish_reason": finish_reason}]) | {"usage": usage}

    def first(self) -> dict[str, Any] | None:
        """The chunk before the text, which a chat has."""
        return self._chunk({"delta": {"role": "assistant", "content": None}}) if self.is_chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk({"delta": {"content": text}} if self.is_chat else {"text": text})

    def last(self, finish_reason: str) -> dict[str, Any]:
        """The chunk after the text."""
        return self._chunk({"delta": {}} if self.is_chat else {"text": ""}, finish_reason)

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The chunk with the usage, for those who asked for it."""
        return self._around(self._chunk_kind, []) | {"usage": usage}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(self, said: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return self._around(self._chunk_kind, [{"index": 0, **said, "finish_reason": finish_reason}])

    def _around(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {
            "id": f"{prefix}-{self.number}", "object": kind, "created": self.created, "model": self.model,
            "choices": choices,
        }  # fmt: skip


def answer_usage(n_prompt: int, n_written: int) -> dict[str, int]:
    """The `usage` of an answer."""
    return {"prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written}


def error_answer(status: int, message: str) -> dict[str, Any]:
    """An error in the API's own form."""
    kind = _ERRORS.get(status, "invalid_request_error")
    return {"error": {"code": status, "message": message, "type": kind}}


@dataclass
class Metrics:
    """Counters since the start, with llama-server's names."""

    prompt_tokens: int = 0
    prompt_s: float = 0.0
    written_tokens: int = 0
    written_s: float = 0.0
    processing: int = 0  # now

    def text(self) -> str:
        """In the format of Prometheus."""
        rows = (
            ("prompt_tokens_total", "counter", "Number of prompt tokens processed.", self.prompt_tokens),
            ("prompt_seconds_total", "counter", "Prompt process time", self.prompt_s),
            ("tokens_predicted_total", "counter", "Number of generation tokens processed.", self.written_tokens),
            ("tokens_predicted_seconds_total", "counter", "Predict process time", self.written_s),
            ("requests_processing", "gauge", "Number of requests processing.", self.processing),
        )
        return "".join(
            f"# HELP llamacpp:{name} {said}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value:g}\n"
            for name, kind, said, value in rows
        )
