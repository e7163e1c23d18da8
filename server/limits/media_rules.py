"""Checks the pictures and sounds of a request to the local server; server/proxy/media.js is the compose file's.

llama-server would fetch whatever address a request names, and decode a file of kilobytes into gigabytes. So a picture
or a sound is in the request itself, and says what it is decoded to: pixels, and the samples of a second.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

_NAMED: Final = ("image_url", "audio_url", "video_url", "file_url", "input_image", "input_audio", "input_video")
_INNER: Final = ("url", "data")
_DATA: Final = re.compile(r"data:[\w.+/-]{0,100};base64,")
_PLACES: Final = ("messages", "input", "system", "prompt", "contents")
_LEAST_RATE: Final = 8_000  # samples a second: fewer would be stretched to many
_JPEG_SIZES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


class MediaError(ValueError):
    """A picture or a sound that is not passed on."""


def request_media(asked: Mapping[str, Any]) -> Iterator[bytes]:
    """Every picture and sound of a body.

    Raises:
        MediaError: one is named by an address, or is not base64.
    """
    left = [asked[place] for place in _PLACES if place in asked]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left.extend(one)
        elif isinstance(one, dict):
            yield from _media_of_part(one)
            left.extend(one.values())


def media_pixels(data: bytes) -> int:
    """The pixels of a picture; 0 of a sound.

    Raises:
        MediaError: it is neither a PNG, JPEG, GIF or BMP nor a WAV or MP3, or a sound of too few samples a second.
    """
    for begins, measure in _FORMATS:
        if re.match(begins, data, re.DOTALL):
            try:
                return measure(data)
            except IndexError:
                raise MediaError("a picture or sound ends in its head") from None
    raise MediaError("a picture must be a PNG, JPEG, GIF or BMP, a sound a WAV or MP3")


def _media_of_part(part: Mapping[str, Any]) -> Iterator[bytes]:
    for name in _NAMED:
        yield from _media_of_value(part.get(name))
    source = part.get("source")
    if isinstance(source, dict) and source.get("type") != "text":
        yield from _media_of_value({name: source.get(name) for name in _INNER})
    many = part.get("multimodal_data")
    for one in many if isinstance(many, list) else ():
        yield from _media_of_value({"data": one})


def _media_of_value(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        yield _media_of_address(value)
    elif isinstance(value, dict):
        if isinstance(address := value.get("url"), str):
            yield _media_of_address(address)
        if isinstance(data := value.get("data"), str):
            yield _decoded_media(data)


def _media_of_address(address: str) -> bytes:
    found = _DATA.match(address)
    if found is None:
        raise MediaError("a picture or sound must be in the request: data:image/png;base64,…")
    return _decoded_media(address[found.end() :])


def _decoded_media(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MediaError("a picture or sound is not base64") from None


def _pixels_of_png(data: bytes) -> int:
    return _number_in_media(data, 16, "big", 4) * _number_in_media(data, 20, "big", 4)


def _pixels_of_gif(data: bytes) -> int:
    return _number_in_media(data, 6, "little", 2) * _number_in_media(data, 8, "little", 2)


def _pixels_of_bmp(data: bytes) -> int:
    if _number_in_media(data, 14, "little", 4) == 12:  # bytes of the oldest header
        return _number_in_media(data, 18, "little", 2) * _number_in_media(data, 20, "little", 2)
    width, height = (int.from_bytes(_bytes_of_media(data, at, 4), "little", signed=True) for at in (18, 22))
    return abs(width) * abs(height)


def _pixels_of_jpeg(data: bytes) -> int:
    at, largest = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _JPEG_BARE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_SIZES:
            largest = max(largest, _number_in_media(data, at + 5, "big", 2) * _number_in_media(data, at + 7, "big", 2))
        if marker == 0xDA:  # the pixels follow
            break
        at += 2 + _number_in_media(data, at + 2, "big", 2)
    if not largest:
        raise MediaError("a JPEG does not say its size")
    return largest


def _pixels_of_wav(data: bytes) -> int:
    at = 12
    while data[at : at + 4] != b"fmt ":
        at += 8 + (_number_in_media(data, at + 4, "little", 4) + 1) // 2 * 2  # chunks begin at even places
    if (rate := _number_in_media(data, at + 12, "little", 4)) < _LEAST_RATE:
        raise MediaError(f"a sound has {rate} samples a second: at least {_LEAST_RATE} are needed")
    return 0


def _pixels_of_mp3(_data: bytes) -> int:
    return 0


def _number_in_media(data: bytes, at: int, order: Any, n_bytes: int) -> int:
    return int.from_bytes(_bytes_of_media(data, at, n_bytes), order)


def _bytes_of_media(data: bytes, at: int, n_bytes: int) -> bytes:
    if at + n_bytes > len(data):
        raise IndexError
    return data[at : at + n_bytes]


# To add a format: how it begins, and how many pixels it is decoded to. What tells of them only at its end is not taken.
_FORMATS: Final[tuple[tuple[bytes, Callable[[bytes], int]], ...]] = (
    (rb"\x89PNG\r\n\x1a\n.{4}IHDR", _pixels_of_png), (rb"\xff\xd8\xff", _pixels_of_jpeg),
    (rb"GIF8[79]a", _pixels_of_gif), (rb"BM", _pixels_of_bmp),
    (rb"RIFF.{4}WAVE", _pixels_of_wav), (rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", _pixels_of_mp3),
)  # fmt: skip
