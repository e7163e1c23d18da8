"""A request body, checked: what is asked of the model. What this server cannot do is refused, never ignored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from server.encoder_decoder.model import Sampling

Body = Mapping[str, Any]
_MOST_TOKENS: Final = 1 << 20  # the context is shorter
# Fields that would change an answer, and that this server does not have. To support one: take it out here.
_NOT_HERE: Final = (
    "grammar", "json_schema", "tools", "functions", "logprobs", "top_logprobs", "n_probs", "logit_bias", "suffix",
    "lora",
)  # fmt: skip


class BadBody(Exception):
    """A body that asks for nothing that can be answered; the message says why."""


@dataclass(frozen=True)
class Asked:
    """One request."""

    prompt: str
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stream: bool = False
    with_usage: bool = False  # a stream ends with the usage
    is_chat: bool = False
    model: str = field(default="")  # as the request names it


def read_asked(body: Body, *, is_chat: bool) -> Asked:
    """Check a body.

    Raises:
        BadBody: a field has a wrong type or value, or asks for what this server cannot do.
    """
    _refuse_unsupported_asked(body)
    return Asked(
        prompt=_asked_chat_prompt(body) if is_chat else _asked_prompt(body), max_tokens=_asked_max_tokens(body),
        sampling=_asked_sampling(body), stop=_asked_stop_texts(body), stream=bool(body.get("stream")), is_chat=is_chat,
        with_usage=bool((body.get("stream_options") or {}).get("include_usage")), model=str(body.get("model") or ""),
    )  # fmt: skip


def parse_json_object(data: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        BadBody: it is not one.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadBody(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadBody("the body is not a JSON object")
    return body


def _refuse_unsupported_asked(body: Body) -> None:
    for name in _NOT_HERE:
        if body.get(name):
            raise BadBody(f"{name} is not supported: the server of an encoder-decoder writes plain text only")
    form = body.get("response_format") or {}
    if not isinstance(form, dict) or form.get("type", "text") != "text":
        raise BadBody("response_format is not supported: the server of an encoder-decoder writes plain text only")
    if not isinstance(body.get("stream_options") or {}, dict):
        raise BadBody("stream_options must be an object")
    if _asked_number(body, ("n", "best_of"), 1, 1, 1) != 1:
        raise BadBody("n must be 1")


def _asked_prompt(body: Body) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise BadBody("prompt must be one text")
    return prompt


def _asked_chat_prompt(body: Body) -> str:
    """The texts of all messages, a line each: these models have no chat template, and take plain instructions."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise BadBody("messages must be a list of objects with role and content")
    return "\n".join(text for message in messages if (text := _asked_content(message)))


def _asked_content(message: Body) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(text is None or isinstance(text, str) for text in texts):
        raise BadBody("content must be text")
    return "".join(text for text in texts if text)


def _asked_max_tokens(body: Body) -> int:
    most = int(_asked_number(body, ("max_completion_tokens", "max_tokens", "n_predict"), -1, -1, _MOST_TOKENS))
    return most if most >= 0 else _MOST_TOKENS


def _asked_sampling(body: Body) -> Sampling:
    usual, huge = Sampling(), float(2**31 - 1)
    seed = int(_asked_number(body, ("seed",), usual.seed, -1, 2**32 - 1))
    return Sampling(
        temperature=_asked_number(body, ("temperature",), usual.temperature, 0, 100),
        top_k=int(_asked_number(body, ("top_k",), usual.top_k, -1, huge)),
        top_p=_asked_number(body, ("top_p",), usual.top_p, 0, 1),
        min_p=_asked_number(body, ("min_p",), usual.min_p, 0, 1),
        repeat_penalty=_asked_number(body, ("repeat_penalty",), usual.repeat_penalty, 0, 100),
        frequency_penalty=_asked_number(body, ("frequency_penalty",), usual.frequency_penalty, -2, 2),
        presence_penalty=_asked_number(body, ("presence_penalty",), usual.presence_penalty, -2, 2),
        seed=seed if seed >= 0 else usual.seed,
    )  # fmt: skip


def _asked_number(body: Body, names: tuple[str, ...], usual: float, least: float, most: float) -> float:
    name = next((name for name in names if body.get(name) is not None), "")
    value = body[name] if name else usual
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise BadBody(f"{name} must be a number from {least:g} to {most:g}")
    return value


def _asked_stop_texts(body: Body) -> tuple[str, ...]:
    stop = body.get("stop") or []
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadBody("stop must be a text or a list of texts")
    return tuple(text for text in texts if text)
