"""Checks of a model that reads pictures or sound: it is sent a small one, made here, in the form of OpenAI's API."""

from __future__ import annotations

import base64
import math
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from server.api_checks.session import (
    ApiSession,
    api_answer_text,
    api_answer_usage,
    api_error_text,
    need_promise,
    shown_api_answer,
)

_TOKENS: Final = 8
_SIDE: Final = 64  # pixels
_RATE, _SECONDS, _HERTZ = 16_000, 1.0, 440.0  # of the sound
_AWAIT_S: Final = 1.0  # within which a server that fetches addresses has done so
_LOOK: Final = "What do you see?"
_HEAR: Final = "What do you hear?"
_Part = dict[str, object]


def check_picture(session: ApiSession) -> str:
    """A picture is read: it takes tokens. What is not a picture is refused, and an address of one too."""
    read = _read_media_tokens(session, _LOOK, _picture_part(png_picture(_SIDE)), "picture")
    _need_media_refused(session, _LOOK, _picture_part(b"not a picture"), "bytes that are not a picture")
    with _listener_for_media_url() as (address, was_called):
        _need_media_refused(
            session, _LOOK, {"type": "image_url", "image_url": {"url": address}}, f"the address {address}"
        )
        need_promise(not was_called(), "the server fetched an address that a request named")
    return f"{read}; what is not one is refused, and an address too, unfetched"


def check_sound(session: ApiSession) -> str:
    """A sound is read: it takes tokens. What is not a sound is refused."""
    read = _read_media_tokens(session, _HEAR, _sound_part(wav_sound()), "sound")
    _need_media_refused(session, _HEAR, _sound_part(b"not a sound"), "bytes that are not a sound")
    return f"{read}; what is not one is refused"


def png_picture(side: int) -> bytes:
    """A square of colours that change from left to right and from top to bottom, 8 bit RGB."""
    pixels = [[bytes((255 * x // side, 255 * y // side, 128)) for x in range(side)] for y in range(side)]
    data = zlib.compress(b"".join(b"\0" + b"".join(row) for row in pixels))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", head) + _png_chunk(b"IDAT", data) + _png_chunk(b"IEND", b"")


def wav_sound() -> bytes:
    """A second of one tone, 16 bit PCM, one channel."""
    n = int(_RATE * _SECONDS)
    tone = struct.pack(f"<{n}h", *(int(8000 * math.sin(2 * math.pi * _HERTZ * i / _RATE)) for i in range(n)))
    form = struct.pack("<HHIIHH", 1, 1, _RATE, 2 * _RATE, 2, 16)
    body = b"WAVE" + _riff_chunk_of_sound(b"fmt ", form) + _riff_chunk_of_sound(b"data", tone)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _read_media_tokens(session: ApiSession, prompt: str, part: _Part, what: str) -> str:
    """Ask with and without this part of the message."""
    alone = api_answer_usage(session.chat(prompt, max_tokens=_TOKENS))[0]
    answer = session.chat(prompt, messages=_media_messages(prompt, part), max_tokens=_TOKENS)
    text, used = api_answer_text(answer), api_answer_usage(answer)[0]
    need_promise(used > alone, f"{used} prompt_tokens with the {what}, {alone} without: it was not read")
    need_promise(bool(text.strip()), f"the answer to a {what} is empty")
    return f"the {what} takes {used - alone} tokens and is answered with {text[:40]!r}"


def _need_media_refused(session: ApiSession, prompt: str, part: _Part, what: str) -> None:
    answer = session.chat(prompt, messages=_media_messages(prompt, part), max_tokens=_TOKENS)
    is_refused = 400 <= answer.status < 500 and bool(api_error_text(answer))
    need_promise(is_refused, f"{what}: wanted 4xx with a reason, got {shown_api_answer(answer)}")


def _media_messages(prompt: str, part: _Part) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "text", "text": prompt}, part]}]


def _picture_part(data: bytes) -> _Part:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def _sound_part(data: bytes) -> _Part:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


@contextmanager
def _listener_for_media_url() -> Iterator[tuple[str, Callable[[], bool]]]:
    """An address of this machine, and whether anybody connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_AWAIT_S)

        def was_called() -> bool:
            try:
                server.accept()[0].close()
            except TimeoutError:
                return False
            return True

        yield f"http://127.0.0.1:{server.getsockname()[1]}/picture.png", was_called


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _riff_chunk_of_sound(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data
