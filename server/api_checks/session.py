"""A server as the checks use it: sends requests, and reads the fields of answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from quantyard.formats.gguf import Medium
from quantyard.formats.purpose import Purpose
from quantyard.protocol.predictions import FilePredictions
from server.api_checks.launch import Answer, Wire

CHAT: Final = "/v1/chat/completions"
COMPLETION: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
RERANK: Final = "/v1/rerank"
EXCERPT: Final = 160  # characters of an answer shown in a finding


class BrokenPromise(Exception):
    """A promise that was not kept; its text is the finding."""


@dataclass(frozen=True)
class Streamed:
    """The content of a whole stream of server-sent events."""

    text: str
    finish_reason: str
    usage: dict[str, Any]  # the last one sent; {} if no chunk had one
    is_done: bool  # whether it ended with [DONE]
    n_chunks: int


@dataclass
class ApiSession:
    """A server as the checks use it: its `Wire`, and what it reports about itself (requested once)."""

    wire: Wire
    has_chat_template: bool = True  # a base model has none, and the server would make one up
    is_encoder_decoder: bool = False  # its server takes a chat as plain text, and writes plain text only

    purpose: Purpose = "generate"
    media: tuple[Medium, ...] = ()  # what it reads besides text
    measured: FilePredictions | None = None  # what the measurement of the same file predicted, if there was one

    @cached_property
    def model(self) -> str:
        """The id of the first model it lists; "" if it lists none."""
        models = self.wire.get("/v1/models").body.get("data")
        first = models[0] if isinstance(models, list) and models else None
        return str(first.get("id", "")) if isinstance(first, dict) else ""

    @cached_property
    def props(self) -> dict[str, Any]:
        """The server's answer to /props; {} if it has no such route."""
        answer = self.wire.get("/props")
        return answer.body if answer.status == 200 else {}

    @cached_property
    def server(self) -> str:
        """The program that answers and its version; llama-server reports `build_info`, the local server `server`."""
        if server := self.props.get("server"):
            return str(server)
        return f"llama-server {build}" if (build := self.props.get("build_info")) else "unknown"

    @property
    def n_ctx(self) -> int | None:
        """Tokens of one client's context; None if the server does not report it."""
        n_ctx = self.props.get("default_generation_settings", {}).get("n_ctx")
        return n_ctx if isinstance(n_ctx, int) and n_ctx > 0 else None

    def chat_body(self, prompt: str, **settings: object) -> dict[str, object]:
        """The body of a request; thinking is switched off, if the model's template supports that."""
        asked: dict[str, object] = {"messages": [{"role": "user", "content": prompt}], "temperature": 0}
        return {"model": self.model, "chat_template_kwargs": {"enable_thinking": False}, **asked, **settings}

    @property
    def route(self) -> str:
        """The route that the model is for."""
        return {"generate": CHAT, "embed": EMBEDDINGS, "rerank": RERANK}[self.purpose]

    def chat(self, prompt: str, **settings: object) -> Answer:
        return self.wire.post(CHAT, self.chat_body(prompt, **settings))

    def complete(self, prompt: str, **settings: object) -> Answer:
        return self.wire.post(COMPLETION, {"model": self.model, "prompt": prompt, "temperature": 0, **settings})

    def ask(self, prompt: str, **settings: object) -> Answer:
        """A chat; of a base model a completion, of others what they are for."""
        if self.purpose == "embed":
            return self.embed(prompt)
        if self.purpose == "rerank":
            return self.rank(prompt, ["Hello"])
        return self.chat(prompt, **settings) if self.has_chat_template else self.complete(prompt, **settings)

    def embed(self, texts: object, **settings: object) -> Answer:
        """Embeddings of a text or of several."""
        return self.wire.post(EMBEDDINGS, {"model": self.model, "input": texts, **settings})

    def rank(self, query: object, documents: object, **settings: object) -> Answer:
        """The scores of documents by a query."""
        return self.wire.post(RERANK, {"model": self.model, "query": query, "documents": documents, **settings})

    def stream(self, prompt: str, **settings: object) -> Streamed:
        """A streamed chat."""
        answer = self.ask(prompt, stream=True, **settings)
        need_promise(answer.status == 200, f"a stream is refused: {shown_api_answer(answer)}")
        need_promise("text/event-stream" in answer.content_type, f"a stream comes as {answer.content_type!r}")
        return read_api_stream(answer.text)


def need_promise(kept: bool, finding: str) -> None:
    if not kept:
        raise BrokenPromise(finding)


def shown_api_answer(answer: Answer) -> str:
    return f"{answer.status} {' '.join(answer.text.split())[:EXCERPT]}".rstrip()


def api_answer_choice(answer: Answer) -> dict[str, Any]:
    """The first choice of an answer, which must be 200 and have one."""
    choices = answer.body.get("choices")
    is_one = answer.status == 200 and isinstance(choices, list) and choices and isinstance(choices[0], dict)
    need_promise(bool(is_one), f"wanted 200 and choices, got {shown_api_answer(answer)}")
    return dict(choices[0])  # type: ignore[index]


def api_answer_text(answer: Answer) -> str:
    """The text that the model wrote, including its reasoning."""
    choice = api_answer_choice(answer)
    message = choice.get("message") or {}
    return str(choice.get("text") or f"{message.get('reasoning_content') or ''}{message.get('content') or ''}")


def api_answer_usage(answer: Answer) -> tuple[int, int, int]:
    """Tokens of the prompt, of the completion, and in total."""
    usage = answer.body.get("usage") or {}
    counts = tuple(usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    need_promise(all(isinstance(count, int) for count in counts), f"usage is {usage}")
    prompt, completion, total = counts
    need_promise(prompt + completion == total, f"usage does not add up: {prompt} + {completion} is not {total}")  # type: ignore[operator]
    return prompt, completion, total  # type: ignore[return-value]


def read_api_stream(text: str) -> Streamed:
    """Join the chunks of a chat's stream.

    Raises:
        BrokenPromise: a chunk is not a JSON object, or an error.
    """
    events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    pieces, reason, usage = [], "", dict[str, Any]()
    for event in events:
        chunk = Answer(200, event).body
        need_promise(event == "[DONE]" or bool(chunk), f"a chunk is not a JSON object: {event[:EXCERPT]!r}")
        need_promise("error" not in chunk, f"the stream ends in an error: {event[:EXCERPT]}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            said = f"{delta.get('reasoning_content') or ''}{delta.get('content') or ''}"
            pieces.append(said or str(choice.get("text") or ""))
            reason = choice.get("finish_reason") or reason
    return Streamed("".join(pieces), reason, usage, events[-1:] == ["[DONE]"], len(events))


def api_error_text(answer: Answer) -> str:
    """The message of a JSON error; "" if the answer is not one. FastAPI's own errors use `detail`."""
    error = answer.body.get("error") or answer.body.get("detail") or ""
    return error if isinstance(error, str) else str(error.get("message", "") if isinstance(error, dict) else error)
