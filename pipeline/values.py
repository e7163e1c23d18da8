"""Values as users type them, checked: each says what is wrong with one, and how to write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import BadRequest

_ON = {"1", "true", "yes", "on"}
_OFF = {"", "0", "false", "no", "off"}
_INTEGER = re.compile(r"^-?[0-9]+$")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?$", re.IGNORECASE)
_POWERS = ("", "K", "M", "G", "T")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """The value, which must be one of these."""
    if value not in allowed:
        message = f"{name}={value} is not one of {', '.join(allowed)}."
        raise BadRequest(message, f"Type one of them: {name}={allowed[0]}")
    return value


def flag(name: str, values: Mapping[str, str]) -> bool:
    """On or off; nothing is off."""
    value = values[name].lower()
    if value not in _ON | _OFF:
        raise BadRequest(f"{name}={values[name]} is neither on nor off.", f"Type {name}=1, or leave it out.")
    return value in _ON


def integer(name: str, values: Mapping[str, str], low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if not _INTEGER.match(values[name]) or not low <= int(values[name]) <= high:
        message = f"{name}={values[name]} is not a whole number from {low} to {high}."
        raise BadRequest(message, f"Type {name}={low or high}.")
    return int(values[name])


def optional(name: str, values: Mapping[str, str], low: int, high: int) -> int | None:
    """The same; None where nothing is given."""
    return integer(name, values, low, high) if values[name] else None


def readable(name: str, values: Mapping[str, str]) -> Path | None:
    """A file that is there and can be read: found out before hours of work, not after."""
    if not values[name]:
        return None
    path = Path(values[name]).expanduser().absolute()
    try:
        path.open("rb").close()
    except OSError as error:
        message = f"{name}={values[name]} cannot be read: {error.strerror}."
        raise BadRequest(message, f"Give a file that can be read: {name}=path") from error
    return path


def size(name: str, text: str, least_bytes: int, least: str, *, of_file: bool = False) -> int:
    """16GiB, 16G and 16GB of memory are the same, powers of 1024; of a file the last two are powers of 1000, as our
    tables and the Hub show them.
    """
    match = _SIZE.match(text.strip())
    step = 1000 if match and of_file and not match[3] else 1024
    size_bytes = int(float(match[1]) * step ** _POWERS.index(match[2].upper())) if match else 0
    if size_bytes < least_bytes:
        raise BadRequest(f"{name}={text} is not a size of at least {least}.", f"Write it like this: {name}=16GiB")
    return size_bytes
