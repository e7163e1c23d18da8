"""A small typed client of a served model, on the `openai` package: chat and completion, also streamed.

Errors are one of these; each message is "fact, value, what to type next":

    ClientError
    ├── BadSampling           an option is out of its range
    ├── KeyUnusable           the key's file is missing, unreadable or empty
    ├── NoServer              no server answers at the address, or the model is still loading
    ├── KeyRefused            the server has another key
    ├── UnknownModel          the server serves another model
    ├── PromptTooLong         more tokens than the server's context holds
    ├── AnswerBroken          the answer ended before it was finished: the server crashed or was stopped
    ├── TimedOut              no answer, or no further piece of it, in time
    ├── RequestRefused        any other refusal of the server
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
DEFAULT_TIMEOUT_S: Final = 600.0  # between two pieces of a streamed answer, or for a whole unstreamed one
_CONNECT_TIMEOUT_S: Final = 5.0
_TOO_LONG: Final = "exceed_context_size_error"  # of llama-server
_LOOPBACK: Final = {"127.0.0.1", "localhost", "::1"}
_START: Final = "Start it: docker compose up"

# What llama-server takes for a model without a chat template (CHATML_TEMPLATE_SRC of llama.cpp's common/chat.cpp).
_MADE_UP_TEMPLATE: Final = (
    "{%- for message in messages -%}\n"
    "  {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "  {{- '<|im_start|>assistant\n' -}}\n"
    "{%- endif -%}"
)

Message = dict[str, str]  # {"role": "user", "content": "…"}
Stream = Generator[str, None, str]  # pieces of text; its return value is the finish reason, "stop" or "length"


class ClientError(Exception):
    """Base class: `message` is the fact and its value, `hint` what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message, self.hint = message, hint


class BadSampling(ClientError):
    """An option is out of its range."""


class KeyUnusable(ClientError):
    """The key's file is missing, unreadable or empty."""


class NoServer(ClientError):
    """No server answers at the address, or the model is still loading."""


class KeyRefused(ClientError):
    """The server has another key."""


class UnknownModel(ClientError):
    """The server serves another model."""


class PromptTooLong(ClientError):
    """More tokens than the server's context holds."""


class AnswerBroken(ClientError):
    """The answer ended before it was finished."""


class TimedOut(ClientError):
    """No answer, or no further piece of it, in time."""


class RequestRefused(ClientError):
    """Any other refusal; the message is the server's."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    Raises:
        BadSampling: a value is out of its range.
    """

    temperature: float = 0.7  # 0: always the most likely token
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
        """Arguments for the openai package; fields that its API does not have go into `extra_body`."""
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
    """A whole answer; `finish_reason` is "stop", or "length" if max_tokens or the context cut it."""

    text: str
    finish_reason: str
    model: str
    prompt_tokens: int
    completion_tokens: int


class Client:
    """A served model. No request is sent before the first call.

    Args:
        base_url: the address, including `/v1`.
        key_file: see `read_client_key`; None for a server without a key.
        model: a name in the server's list of models; "": the first.
        timeout_s: for an answer, or between two pieces of a streamed one.

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
        """The openai client with a listener that is called with every response first."""
        return self.openai.with_options(http_client=self._transport(response=[listener]))

    def _transport(self, **listeners: list[Callable[..., Any]]) -> httpx2.Client:
        # A proxy from the environment cannot reach this machine's loopback, so it is ignored for local servers.
        is_here = urlsplit(self.base_url).hostname in _LOOPBACK
        return openai.DefaultHttpxClient(trust_env=not is_here, event_hooks=dict(listeners))

    @cached_property
    def model(self) -> str:
        """The model's name, checked against the server's list: llama-server itself accepts any name.

        Raises:
            UnknownModel: the server serves another model.
        """
        return self._served(self._wanted)

    @property
    def models(self) -> list[str]:
        """The names in the server's list of models."""
        with self.our_errors():
            return [model.id for model in self.openai.models.list().data]

    def use(self, model: str) -> None:
        """Ask this model from now on.

        Raises:
            UnknownModel: the server does not serve it; the model stays as it was.
        """
        self.model = self._served(model)

    def _served(self, wanted: str) -> str:
        listed = self.models
        if not listed:
            raise UnknownModel(f"The server at {self.base_url} does not list any model.", _START)
        if wanted and wanted not in listed:
            names = ", ".join(listed)
            raise UnknownModel(f"The server at {self.base_url} does not serve {wanted!r}.", f"It serves: {names}")
        return wanted or listed[0]

    @cached_property
    def is_base_model(self) -> bool:
        """Whether llama-server made a chat template up, as the model has none. False where the server does not say."""
        try:
            props = self.openai.get(f"{self.base_url.rstrip('/').removesuffix('/v1')}/props", cast_to=httpx2.Response)
            template = props.json().get("chat_template")
        except (openai.OpenAIError, ValueError, AttributeError):
            return False
        return bool(template == _MADE_UP_TEMPLATE)

    def chat(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Answer:
        """The answer to a conversation; errors as in the module's tree."""
        create: Any = self.openai.chat.completions.create  # Any: its overloads do not accept plain dicts
        with self.our_errors():
            found = create(model=self.model, messages=list(messages), **sampling.arguments())
            return self._answer(found, found.choices[0].message.content)

    def complete(self, prompt: str, sampling: Sampling = Sampling()) -> Answer:
        """The continuation of a text; errors as in the module's tree."""
        with self.our_errors():
            found = self.openai.completions.create(model=self.model, prompt=prompt, **sampling.arguments())
            return self._answer(found, found.choices[0].text)

    def stream_chat(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """The answer in pieces, as they arrive. Closing the iterator stops the server's work on it.

        Raises:
            AnswerBroken: the answer ended before it was finished, so the pieces are incomplete.
        """
        create: Any = self.openai.chat.completions.create
        asked = {"messages": list(messages), **sampling.arguments()}
        return self._pieces(create, asked, lambda choice: choice.delta.content)

    def stream_complete(self, prompt: str, sampling: Sampling = Sampling()) -> Stream:
        """The continuation of a text in pieces; see `stream_chat`."""
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
        if not reason:  # a killed server closes the connection, which looks like the end of the stream
            raise self._broken(n_characters)
        return reason

    def _broken(self, n_characters: int) -> AnswerBroken:
        said = f"The answer of {self.base_url} ended after {n_characters:,} characters, before it was finished."
        return AnswerBroken(said, "Its log says why: docker compose logs. Start it again: docker compose up")

    @contextmanager
    def our_errors(self) -> Iterator[None]:
        """Turn errors of the openai package and its transport into those of the module's tree."""
        try:
            yield
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            hint = "Ask for fewer tokens (MAX_TOKENS), or read the server's log: docker compose logs"
            raise TimedOut(f"{self.base_url} did not answer in time.", hint) from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            raise self._not_reached(error) from error
        except (httpx2.TransportError, openai.APIError) as error:  # the connection broke, or an error came in a stream
            message = f"The answer of {self.base_url} broke off: {error}."
            raise AnswerBroken(message, "Its log says why: docker compose logs") from error

    def _not_reached(self, error: openai.APIConnectionError) -> ClientError:
        cause = error.__cause__
        if isinstance(cause, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.InvalidURL):
            return NoServer(f"No server answers at {self.base_url} ({cause}).", _START)
        return AnswerBroken(f"{self.base_url} closed the connection ({cause}).", "Read the log: docker compose logs")

    def _refused(self, error: openai.APIStatusError) -> ClientError:
        body = error.body if isinstance(error.body, dict) else {}
        said = str(body.get("message") or error.response.text.strip() or error.message).rstrip(".")
        if error.status_code in (401, 403):
            return KeyRefused(f"{self.base_url} refuses the key ({said}).", "Name the file with its key: KEY_FILE=file")
        if error.status_code == 503:
            return NoServer(f"{self.base_url} is not ready: {said}.", "Wait a moment, then try again.")
        if body.get("type") == _TOO_LONG:
            return PromptTooLong(f"The prompt is too long: {said}.", "Shorten it, or serve with a larger context.")
        return RequestRefused(f"{self.base_url} refuses the request ({error.status_code}): {said}.")


def read_client_key(path: Path) -> str:
    """The first key in a file; blank lines and lines that begin with a hash are skipped, as in llama-server.

    Raises:
        KeyUnusable: the file is missing, unreadable or empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
    except FileNotFoundError:
        message = f"The key's file {path} does not exist."
        raise KeyUnusable(message, "Make it: docker compose up. Or name another: KEY_FILE=file") from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"The key's file {path} cannot be read: {error}."
        raise KeyUnusable(message, f"Check it: ls -l {path}. Or name another: KEY_FILE=file") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise KeyUnusable(f"The key's file {path} is empty.", "Remove it, then make a new one: docker compose up")
    return keys[0]
