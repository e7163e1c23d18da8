"""Checks foreign names before they become names of files or folders here.

A name is one path component without control characters, short enough for every file system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from quantyard.formatting.printable import printable_line

MAX_NAME_BYTES: Final = 255  # what ext4, XFS, APFS and NTFS take
MAX_PATH_BYTES: Final = 1024
_SAFE_NAME_CHARACTERS: Final = 96  # as long as a name on the Hub; endings are put behind it
_SHOWN: Final = 6
_LONGEST_SHOWN: Final = 120  # characters of one of several names in a message
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def name_format_fault(name: str) -> str:
    """Why this is not a valid name of a file or folder; "" if it is."""
    if not name:
        return "it is empty"
    if name in (".", ".."):
        return f"{name!r} is a folder itself"
    if "/" in name or "\\" in name:
        return "it is a path"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it holds half a character (a surrogate)"
    if printable_line(name) != name:
        return "it holds a control character or an invisible one"
    return f"it is {size_bytes:,} bytes long, and {MAX_NAME_BYTES} are possible" if size_bytes > MAX_NAME_BYTES else ""


def path_format_fault(path: str) -> str:
    """Why this is not a valid relative path inside a folder; "" if it is."""
    if "\\" in path:
        return "it holds a backslash"
    if len(path) > MAX_PATH_BYTES:
        return f"it is {len(path):,} characters long, and {MAX_PATH_BYTES:,} are possible"
    if path and "" in path.split("/"):
        return "it begins or ends with a slash, or has two in a row"
    faults = (name_format_fault(part) for part in path.split("/"))
    return next((fault for fault in faults if fault), "")


def parse_file_name(text: str) -> str:
    """The text, checked to be one name.

    Raises:
        ValueError: it is not a valid name.
    """
    if fault := name_format_fault(text):
        raise ValueError(f"{shown_name(text)} is not a file name: {fault}")
    return text


def parse_relative_path(text: str) -> str:
    """The text, checked to be a relative path: names separated by single slashes.

    Raises:
        ValueError: it is not a valid path.
    """
    if fault := path_format_fault(text):
        raise ValueError(f"{shown_name(text)} is not a relative path inside its folder: {fault}")
    return text


def safe_file_name(text: str, otherwise: str = "model") -> str:
    """A short name made from any text: ASCII letters, digits, dots, dashes; never hidden, never like an option."""
    return _UNSAFE.sub("-", text).strip("-.")[:_SAFE_NAME_CHARACTERS].rstrip("-.") or otherwise


def shown_name(text: str, limit: int = 80) -> str:
    """A foreign text for a message: quoted, on one line, control characters escaped, cut to its beginning."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text):,} characters)"


def shown_names(items: Iterable[str], limit: int = _SHOWN) -> str:
    """The first items, and the number of the others."""
    shown = [item if len(item) <= _LONGEST_SHOWN else f"{item[:_LONGEST_SHOWN]}…" for item in items]
    more = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {more} more" if more > 0 else "")
