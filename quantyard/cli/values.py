"""Checks the values that users type. Each error states what is wrong with the value, and how to write it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from quantyard.errors import BadRequest
from quantyard.files.own_files import kind_of_path, typed_file_path
from quantyard.formatting.printable import printable_line, url_has_user_info
from quantyard.protocol.text_findings import KINDS, SCRIPT, is_mismatch_kind
from quantyard.requests import OBJECTIONS

_ON = {"1", "true", "yes", "on"}
_OFF = {"", "0", "false", "no", "off"}
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) *([KMGT]?)(i?)B?", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://[^\s?#]+")
_TOKEN = re.compile(r"[!-~]{1,4096}")
_AROUND = " \t\r\n\v\f\0\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NO-BREAK SPACE}"  # may surround a token
_POWERS = ("", "K", "M", "G", "T")
_LONGEST = 65_536  # characters of a value: far above any list of files
_SHOWN = 200
_EXAMPLE = 8  # of a whole number
_SHORT_TIME: Final = re.compile(r"(\d{1,6})([mhd])")
_LONG_TIME: Final = re.compile(r"(?:(\d{1,4})-)?(\d{1,3}):(\d{1,2})(?::(\d{1,2}))?")
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400}


def plain_setting(name: str, value: str) -> str:
    """The value, which must be one printable line without a password.

    Only proxies may contain a password: every other address is written to requests, manifests and messages.
    """
    if (shown := printable_line(value)) != value:
        message = f"{name}={_cut_typed(shown)} contains an unprintable character, written here as an escape."
        raise BadRequest(message, "Remove the character; it may have been copied with the text.")
    if len(value) > _LONGEST:
        message = f"{name} has {len(value):,} characters; at most {_LONGEST:,} are allowed."
        raise BadRequest(message, f"It begins with: {_cut_typed(value)}")
    if "://" in value and url_has_user_info(value):
        raise password_setting_error(name)
    return value


def whole_list_setting(name: str, value: str) -> str:
    """The value, which must not end with a comma: of `QUANT=Q4_K_M, Q8_0` a shell passes on the first part alone."""
    if value.rstrip().endswith(",") and value.strip(" ,"):
        message = f"{name}={_cut_typed(value)} ends with a comma: a space after it ends the value."
        raise BadRequest(message, f"Write the list without spaces, or quote it: {name}={value.rstrip(', ')[:80]},…")
    return value


def password_setting_error(name: str) -> BadRequest:
    """The error for an address with a user name or password, which it does not repeat."""
    message = f"{name} contains a user name or password, and its value is written to requests and manifests."
    return BadRequest(message, "Give the address without the part before the @; for the Hub, set HF_TOKEN.")


def endpoint_setting(text: str) -> str | None:
    """The address of a Hub, which is recorded with every file from it; None if the text is empty."""
    if not text:
        return None
    if "@" in text:
        raise password_setting_error("HF_ENDPOINT")
    if not _ADDRESS.fullmatch(text) or not _has_typed_url_host(text):
        shown = _cut_typed(re.split(r"[?#]", text)[0])  # the rest may be a token
        message = f"HF_ENDPOINT={shown} is not the address of a Hub: http(s)://host, without ? and #."
        raise BadRequest(message, "Write it like this: HF_ENDPOINT=https://hub.example")
    return text.rstrip("/")


def proxy_setting(name: str, url: str) -> str:
    """The address of a proxy, as HTTP clients accept it. It may contain a password, so it is never shown."""
    if printable_line(url) != url or not _has_typed_url_host(url if "://" in url else f"//{url}"):
        hint = f"Write it like this: {name}=http://proxy.example:3128; in a password, / # ? @ : as %2F %23 %3F %40 %3A"
        raise BadRequest(f"{name} is not the address of a proxy.", hint)
    return url


def token_setting(name: str, text: str) -> str | None:
    """A token that fits an HTTP header; it is never shown. None if the text is empty.

    What surrounds it in a file or a variable is removed: spaces, line ends, a byte order mark, and the quotes that
    docker's --env-file keeps.
    """
    token = text.strip(_AROUND)
    if len(token) > 1 and token[0] == token[-1] and token[0] in "\"'":
        token = token[1:-1].strip(_AROUND)
    if token and not _TOKEN.fullmatch(token):
        raise BadRequest(f"{name} is not a token: it contains a space, a line end, or a character outside ASCII.",
                         f"Copy the token again, and set {name} to the token only.")
    return token or None


def _has_typed_url_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _cut_typed(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def one_of_setting(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value, which must be one of `allowed`."""
    if value not in allowed:
        message = f"{name}={_cut_typed(value)} is not one of {', '.join(allowed)}."
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"Did you mean {name}={near[0]}?" if near else f"Type one of them: {name}={allowed[0]}"
        raise BadRequest(message, hint)
    return value


def flag_setting(name: str, values: Mapping[str, str]) -> bool:
    """Whether the flag is on; empty is off."""
    value = values[name].lower()
    if value not in _ON | _OFF:
        raise BadRequest(
            f"{name}={_cut_typed(values[name])} is neither on nor off.", f"Type {name}=1, or leave it out."
        )
    return value in _ON


def mismatch_setting(name: str, values: Mapping[str, str]) -> tuple[str, ...]:
    """The kinds of texts that may differ, by name."""
    kinds = tuple(dict.fromkeys(part.strip().lower() for part in values[name].split(",") if part.strip()))
    for kind in kinds:
        if not is_mismatch_kind(kind):
            typed = f"{name}={_cut_typed(values[name])}"
            message = f"{typed}: {_cut_typed(kind)!r} is not a kind of mismatch, so it permits nothing."
            named = f"{', '.join(KINDS)}, or {SCRIPT}NAME, such as {SCRIPT}hebrew"
            raise BadRequest(message, f"Name what may differ, as the failed check did: {named}")
    return kinds


def agree_setting(name: str, values: Mapping[str, str]) -> tuple[str, ...]:
    """The kinds of objections that the user agrees to."""
    kinds = tuple(dict.fromkeys(part.strip().lower() for part in values[name].split(",") if part.strip()))
    for kind in kinds:
        if kind not in OBJECTIONS:
            message = f"{name}={_cut_typed(values[name])}: there is nothing called {_cut_typed(kind)!r} to agree to."
            raise BadRequest(message, f"Name what a dry run tells: {', '.join(OBJECTIONS)}")
    return kinds


def integer_setting(name: str, values: Mapping[str, str], low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if not _INTEGER.fullmatch(values[name]) or not low <= int(values[name]) <= high:
        message = f"{name}={_cut_typed(values[name])} is not a whole number from {low} to {high}."
        raise BadRequest(message, f"Type a number: {name}={min(max(low, _EXAMPLE), high)}")
    return int(values[name])


def optional_integer_setting(name: str, values: Mapping[str, str], low: int, high: int) -> int | None:
    """As `integer_setting`; None if the value is empty."""
    return integer_setting(name, values, low, high) if values[name] else None


def readable_file_setting(name: str, values: Mapping[str, str]) -> Path | None:
    """A readable file; checked before hours of work."""
    if not values[name]:
        return None
    path = typed_file_path(values[name]).absolute()
    if kind_of_path(path) == "other":  # opening a pipe would block
        raise BadRequest(
            f"{name}={_cut_typed(values[name])} is not a file.", f"Give a file that can be read: {name}=path"
        )
    try:
        path.open("rb").close()
    except OSError as error:
        message = f"{name}={_cut_typed(values[name])} cannot be read: {error.strerror}."
        raise BadRequest(message, f"Give a file that can be read: {name}=path") from error
    return path


def size_setting(name: str, text: str, least_bytes: int, least: str, *, of_file: bool = False) -> int:
    """Bytes of a size. For memory, 16GiB, 16G and 16GB are equal, powers of 1024; for a file, 16G and 16GB are powers
    of 1000, as in our tables and on the Hub.
    """
    match = _SIZE.fullmatch(text.strip())
    step = 1000 if match and of_file and not match[3] else 1024
    size_bytes = int(float(match[1]) * step ** _POWERS.index(match[2].upper())) if match else 0
    if size_bytes < least_bytes:
        raise BadRequest(
            f"{name}={_cut_typed(text)} is not a size of at least {least}.", f"Write it like this: {name}=16GiB"
        )
    return size_bytes


def job_time_setting(name: str, text: str) -> float | None:
    """Seconds of a time as people (12h) or as Slurm (1-12:00:00) write it; None if it is empty."""
    if not text:
        return None
    if short := _SHORT_TIME.fullmatch(text.strip()):
        return float(short[1]) * _SECONDS[short[2]]
    if found := _LONG_TIME.fullmatch(text.strip()):
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    raise BadRequest(f"{name}={text[:80]} is not a time.", f"Write it like this: {name}=12h, or 1-12:00:00")
