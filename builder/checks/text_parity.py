"""What `verify` compares of texts beside token ids: rendered conversations, and the tokenizers of two GGUF files."""

from __future__ import annotations

import re
from typing import Final

from builder.llama.runtime import LlamaRuntime
from quantyard.formats.gguf import GgufHeader
from quantyard.protocol.base import ExitCode
from quantyard.protocol.reference import ChatReference, Reference
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import ChatRefused, sandbox_template_failure

_SHOWN_CHARACTERS: Final = 60
_DATE_WORD: Final = re.compile(
    r"\b(?:\d+|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*)\b"
)
_TEMPLATE_HINT: Final = (
    "This llama.cpp does not run the model's chat template faithfully: try a newer image, or insist with "
    "ALLOW_MISMATCH=plain-text."
)


def check_chat_template(runtime: LlamaRuntime) -> None:
    """Whether a server can load this file's chat template; no permission allows a template that stops the server.

    Raises:
        StageFailure: `chat-template`.
    """
    try:
        runtime.check_template()
    except ChatRefused as error:
        raise sandbox_template_failure("is not accepted by llama.cpp", detail=str(error)) from error
    except OverLimit as error:
        raise sandbox_template_failure(str(error)) from error


def compare_chats(runtime: LlamaRuntime, reference: Reference, model: GgufHeader) -> int:
    """Render every conversation; returns how many there were, 0 for a model without a template.

    Raises:
        StageFailure: `verify-chat-template`, naming the first conversation that differs, or `chat-template`, the one
            on which the template breaks a limit.
    """
    if not reference.chat_template:
        return 0
    if model.chat_template is None:
        message = "The Hugging Face tokenizer has a chat template, the GGUF has none."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-chat-template", message, _TEMPLATE_HINT)
    has_date = "strftime_now" in model.chat_template
    for chat in reference.chats:
        try:
            text = runtime.render_chat(chat.messages)
        except ChatRefused as error:
            raise _wrong_chat_rendering(chat, f"llama.cpp refuses it: {error}") from error
        except OverLimit as error:
            raise sandbox_template_failure(str(error), chat.name) from error
        if not is_same_chat(chat.text, text, reference.bos_token, has_date=has_date):
            raise _wrong_chat_rendering(chat, first_text_difference(chat.text, text))
    return len(reference.chats)


def is_same_chat(expected: str, got: str, bos_token: str | None, *, has_date: bool) -> bool:
    """Whether two renderings are the same to the model.

    One leading BOS is ignored on either side: where llama.cpp adds the BOS when it tokenizes, it takes it out
    of the rendered text, so that it is not there twice. With `has_date`, the template writes today's date;
    the reference may be older, so numbers and the names of days and months are not compared.
    """
    pair = [text.removeprefix(bos_token or "") for text in (expected, got)]
    if has_date:
        pair = [_DATE_WORD.sub("#", text) for text in pair]
    return pair[0] == pair[1]


def first_text_difference(expected: str, got: str) -> str:
    """A sentence on where two texts part."""
    pairs = enumerate(zip(expected, got, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))
    end = at + _SHOWN_CHARACTERS
    return f"from character {at} on, {expected[at:end]!r} is expected and {got[at:end]!r} found"


def _wrong_chat_rendering(chat: ChatReference, what: str) -> StageFailure:
    message = f"The conversation {chat.name!r} is not rendered as with Hugging Face: {what}."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-chat-template", message, _TEMPLATE_HINT)


def tokenizer_differences(source: GgufHeader, model: GgufHeader) -> list[str]:
    """Metadata keys of the tokenizer (vocabulary, merges, special tokens, chat template) that are not the same.

    Arrays are compared by length and digest, which `GgufArray` holds; where they lie in the file may differ.
    """
    keys = sorted(key for key in {**source.metadata, **model.metadata} if key.startswith("tokenizer."))
    return [
        key for key in keys if _comparable_tokenizer_metadata(source, key) != _comparable_tokenizer_metadata(model, key)
    ]


def _comparable_tokenizer_metadata(header: GgufHeader, key: str) -> object:
    value = header.metadata.get(key)
    return getattr(value, "sha256", value)
