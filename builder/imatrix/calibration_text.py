"""The calibration text: Quantyard's own, with its dialogues in the model's chat template, or the user's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.chat_template import ChatRefused, Messages

OUR_TEXT: Final = Path(__file__).parents[1] / "calibration" / "text.jsonl"
_BETWEEN: Final = "\n\n"


class Renderer(Protocol):
    """Renders a conversation with the model's chat template; a `LlamaRuntime` is one."""

    def render_chat(self, messages: Messages) -> str:
        """The text up to where the assistant begins.

        Raises:
            ChatRefused: the template refuses the conversation, or there is none.
        """


def own_calibration_text(renderer: Renderer) -> tuple[str, int]:
    """Quantyard's text, and how many of its dialogues are rendered with the model's own chat template.

    If the template refuses a system message, the dialogue is rendered without it. If it still refuses, or the model
    has no template, the dialogue becomes plain lines.
    """
    lines = OUR_TEXT.read_text(encoding="utf-8").splitlines()
    documents = [_calibration_text(json.loads(line), renderer) for line in lines]
    return _BETWEEN.join(text for text, _ in documents), sum(templated for _, templated in documents)


def _calibration_text(document: dict[str, Any], renderer: Renderer) -> tuple[str, bool]:
    messages = document.get("messages")
    if messages is None:
        return str(document["text"]), False
    *before, last = messages  # the last answer follows the template's opening for it
    for asked in _calibration_message_variants(before):
        try:
            return renderer.render_chat(asked) + str(last["content"]), True
        except ChatRefused:
            continue
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages), False


def _calibration_message_variants(messages: list[dict[str, str]]) -> Iterator[list[dict[str, str]]]:
    yield messages
    if messages[0]["role"] == "system":
        yield messages[1:]


def users_calibration_text(paths: list[Path]) -> str:
    """The user's files, one after the other.

    Raises:
        StageFailure: `bad-text` (2): one is binary, not UTF-8, or empty.
    """
    return _BETWEEN.join(_users_calibration_file(path) for path in paths)


def _users_calibration_file(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        what = f"byte {error.start:,} is 0x{error.object[error.start]:02x}"
        raise bad_calibration_text(f"The calibration file {path.name} is not UTF-8: {what}.") from error
    if "\0" in text:
        raise bad_calibration_text(f"The calibration file {path.name} is binary: byte {data.index(0):,} is 0.")
    if not text.strip():
        raise bad_calibration_text(f"The calibration file {path.name} is empty.")
    return text.strip("\n")


def bad_calibration_text(
    message: str, hint: str = "Give UTF-8 text, or leave CALIBRATION out to use Quantyard's own."
) -> StageFailure:
    """The failure for a text that cannot be used."""
    return StageFailure(ExitCode.BAD_REQUEST, "bad-text", message, hint)
