"""A small typed client of a served model, on the `openai` package: chat, completion, and both as a stream.

What goes wrong comes as one of these; each reads "fact, value, what to type next":

    ClientError
    ├── BadSampling           an option out of its range
    ├── KeyUnusable           the key's file is missing, unreadable or empty
    ├── NoServer              nothing answers at the address, or the model is still being loaded
    ├── KeyRefused            the server knows another key
    ├── UnknownModel          it serves another model
    ├── PromptTooLong         more tokens than the server's context holds
    ├── AnswerBroken          the answer ended before it was finished: the server died or was stopped
    ├── TimedOut
    ├── RequestRefused        anything else the server says no to
    └── StructuredError       see server/client/structured.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import openai

DEFAULT_URL: Final = "http://127.0.0.1:8080/v1"
DEFAULT_KEY_FILE: Final = Path("artifacts/keys/api-key")
DEFAULT_TIMEOUT_S: Final = 600.0  # between two pieces of an answer, or for all of one that is not streamed
_CONNECT_TIMEOUT_S: Final = 5.0
_TOO_LONG: Final = {"exceed_context_size_error", "context_length_exceeded"}  # llama-server, llama_cpp.server
_LOOPBACK: Final = {"127.0.0.1", "localhost", "::1"}
_START: Final = "Start it: docker compose up"

Message = dict[str, str]  # {"role": "user", "content": "…"}
Stream = Generator[str, None, str]  # pieces of text; its return value is the finish reason, "stop" or "length"


class ClientError(Exception):
    """Base of them all: `message` is the fact and its value, `hint` what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message, self.hint = message, hint


class BadSampling(ClientError):
    """An option is out of its range."""


class KeyUnusable(ClientError):
    """The key's file is missing, unreadable or empty."""


class NoServer(ClientError):
    """Nothing answers at the address, or the model is still being loaded."""


class KeyRefused(ClientError):
    """The server knows another key."""


class UnknownModel(ClientError):
    """The server serves another model."""


class PromptTooLong(ClientError):
    """More tokens than the server's context holds."""


class AnswerBroken(ClientError):
    """The answer ended before it was finished."""


class TimedOut(ClientError):
    """No answer, or no further piece of it, in time."""


class RequestRefused(ClientError):
    """The server said no, in words of its own."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    Raises:
        BadSampling: a value is out of its range.
    """

    temperature: float = 0.7  # 0: always the likeliest
    top_p: float = 0.95
    top_k: int = 40  # 0: no limit
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = (
            ("TEMPERATURE", self.temperature, self.temperature >= 0 and math.isfinite(self.temperature), "0 or more"),
            ("TOP_P", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("TOP_K", self.top_k, self.top_k >= 0, "0 (no limit) or more"),
            ("MAX_TOKENS", self.max_tokens, self.max_tokens >= 1, "1 or more"),
        )
        for name, value, is_right, wanted in ranges:
            if not is_right:
                raise BadSampling(f"{name} is {value}.", f"Give {name} {wanted}.")

    def arguments(self) -> dict[str, Any]:
        """As arguments of the openai package; what its API has no name for goes into the body beside the rest."""
        found: dict[str, Any] = {
            "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens,
            "extra_body": {"top_k": self.top_k},
        }
        if self.stop:
            found["stop"] = list(self.stop)
        if self.seed is not None:
            found["seed"] = self.seed
        return found


GREEDY: Final = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Answer:
    """A whole answer; `finish_reason` is "stop", or "length" where max_tokens or the context cut it."""

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int
    completion_tokens: int


class Client:
    """A served model. Nothing is asked before the first call.

    Args:
        base_url: up to and with `/v1`.
        key_file: see `read_client_key`; None for a server without one.
        model: a name of the server's list; "": the first of it.
        timeout_s: for an answer, or between two pieces of one.

    Raises:
        KeyUnusable: the key cannot be read.
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, key_file: Path | None = DEFAULT_KEY_FILE, model: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.base_url = base_url
        self._wanted = model
        self.openai = openai.OpenAI(
            base_url=base_url, api_key="none" if key_file is None else read_client_key(key_file), max_retries=0,
            timeout=httpx2.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S), http_client=self._transport(),
        )

    def heard_by(self, listener: Callable[[httpx2.Response], None]) -> openai.OpenAI:
        """The openai client again, with someone who sees every response first."""
        return self.openai.with_options(http_client=self._transport(response=[listener]))

    def _transport(self, **listeners: list[Callable[..., Any]]) -> httpx2.Client:
        # A company's proxy does not lead to this very machine, whatever the environment says.
        is_here = urlsplit(self.base_url).hostname in _LOOPBACK
        return openai.DefaultHttpxClient(trust_env=not is_here, event_hooks=dict(listeners))

    @cached_property
    def model(self) -> str:
        """The model's name, from the server's list: llama-server itself answers to any name.

        Raises:
            UnknownModel: the server serves another.
        """
        with self.our_errors():
            listed = [model.id for model in self.openai.models.list().data]
        if not listed:
            raise UnknownModel(f"The server at {self.base_url} lists no model.", _START)
        if self._wanted and self._wanted not in listed:
            names = ", ".join(listed)
            raise UnknownModel(f"The server at {self.base_url} does not serve {self._wanted!r}.", f"It serves: {names}")
        return self._wanted or listed[0]

    def chat(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Answer:
        """The answer to a conversation; errors as in the module's tree."""
        create: Any = self.openai.chat.completions.create  # its overloads know no dict of ours
        with self.our_errors():
            found = create(model=self.model, messages=list(messages), **sampling.arguments())
            return self._answer(found, found.choices[0].message.content)

    def complete(self, prompt: str, sampling: Sampling = Sampling()) -> Answer:
        """How a text goes on; errors as in the module's tree."""
        with self.our_errors():
            found = self.openai.completions.create(model=self.model, prompt=prompt, **sampling.arguments())
            return self._answer(found, found.choices[0].text)

    def stream_chat(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """The answer in pieces as they come. Closing the iterator stops the server's work on it.

        Raises:
            AnswerBroken: it ended before it was finished; the pieces so far are not the whole answer.
        """
        create: Any = self.openai.chat.completions.create
        asked = {"messages": list(messages), **sampling.arguments()}
        return self._pieces(create, asked, lambda choice: choice.delta.content)

    def stream_complete(self, prompt: str, sampling: Sampling = Sampling()) -> Stream:
        """As `stream_chat`, of a text that goes on."""
        asked = {"prompt": prompt, **sampling.arguments()}
        return self._pieces(self.openai.completions.create, asked, lambda choice: choice.text)

    def _answer(self, found: Any, text: str | None) -> Answer:
        reason = found.choices[0].finish_reason
        if not reason:
            raise self._broken(len(text or ""))
        used = found.usage
        return Answer(text or "", reason, found.model, used.prompt_tokens, used.completion_tokens)

    def _pieces(self, create: Any, asked: dict[str, Any], text_of: Callable[[Any], str | None]) -> Stream:
        reason, n_characters = "", 0
        with self.our_errors(), create(model=self.model, stream=True, **asked) as chunks:
            for chunk in chunks:
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    if text := text_of(choice):
                        n_characters += len(text)
                        yield text
        if not reason:  # a server that is killed closes the connection as if all had been said
            raise self._broken(n_characters)
        return reason

    def _broken(self, n_characters: int) -> AnswerBroken:
        said = f"The answer of {self.base_url} ended after {n_characters:,} characters, before it was finished."
        return AnswerBroken(said, "See why: docker compose logs; start it again: docker compose up")

    @contextmanager
    def our_errors(self) -> Iterator[None]:
        """Turn what the openai package and its transport raise into the module's tree."""
        try:
            yield
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            hint = "Ask for fewer tokens (MAX_TOKENS), or see what it does: docker compose logs"
            raise TimedOut(f"{self.base_url} gave no answer in time.", hint) from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            raise self._not_reached(error) from error
        except (httpx2.TransportError, openai.APIError) as error:  # the connection broke, or an error came in a stream
            message = f"The answer of {self.base_url} broke off: {error}."
            raise AnswerBroken(message, "See why: docker compose logs") from error

    def _not_reached(self, error: openai.APIConnectionError) -> ClientError:
        cause = error.__cause__
        if isinstance(cause, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.InvalidURL):
            return NoServer(f"Nothing answers at {self.base_url} ({cause}).", _START)
        return AnswerBroken(f"{self.base_url} closed the connection ({cause}).", "See why: docker compose logs")

    def _refused(self, error: openai.APIStatusError) -> ClientError:
        body = error.body if isinstance(error.body, dict) else {}
        said = str(body.get("message") or error.response.text.strip() or error.message).rstrip(".")
        if error.status_code in (401, 403):
            return KeyRefused(f"{self.base_url} refuses the key ({said}).", "Name the file of its key: KEY_FILE=file")
        if error.status_code == 503:
            return NoServer(f"{self.base_url} is not ready: {said}.", "Wait a moment, then type the same again.")
        if {str(body.get("type")), str(body.get("code"))} & _TOO_LONG:
            return PromptTooLong(f"The prompt is too long: {said}.", "Shorten it, or serve with a larger context.")
        return RequestRefused(f"{self.base_url} refuses the request ({error.status_code}): {said}.")


def read_client_key(path: Path) -> str:
    """The first key in a file; as to llama-server, blank lines and those that begin with a hash are not keys.

    Raises:
        KeyUnusable: the file is missing, unreadable or empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
    except FileNotFoundError:
        message = f"The key's file {path} does not exist."
        raise KeyUnusable(message, "docker compose up makes it; or name another: KEY_FILE=file") from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"The key's file {path} cannot be read: {error}."
        raise KeyUnusable(message, f"Look: ls -l {path}; or name another: KEY_FILE=file") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise KeyUnusable(f"The key's file {path} is empty.", "Remove it: docker compose up makes a new one.")
    return keys[0]
