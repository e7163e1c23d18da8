"""Stamps of files (size, modification time, inode), by which the store recognizes unchanged files.

Hashing 40 GB whenever a command looks for finished stages would take minutes. So a file counts as unchanged while its
stamp equals the one taken when it was hashed; otherwise it is hashed again. `make verify FILE=…` always hashes it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from quantyard.files.safe_files import SafeFolder, UnsafeFile, read_file_below
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.strict_json import load_json
from quantyard.protocol.base import FileEntry
from quantyard.protocol.runner import open_file_sha256

STAMPS: Final = "stamps.json"
TRUSTED: Final = "its size and modification time"
_MAX_BYTES: Final = 16 * 1024 * 1024
Stamp = list[int]


def file_stamp(found: os.stat_result) -> Stamp:
    """Size in bytes, modification time in nanoseconds, inode."""
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def file_stamps_text(files: SafeFolder, outputs: tuple[FileEntry, ...]) -> str:
    """The current stamps of these files, as JSON."""
    return dump_finite_json({entry.path: file_stamp(files.stat(entry.path)) for entry in outputs}) + "\n"


def read_file_stamps(folder: Path) -> Mapping[str, Stamp] | None:
    """The stamps of a finished stage; None if it has none (an older Quantyard made it)."""
    try:
        found = load_json(read_file_below(folder, STAMPS, _MAX_BYTES), _MAX_BYTES)
    except (UnsafeFile, ValueError, OSError):
        return None
    return found if isinstance(found, dict) else None


def matches_file_stamp(files: SafeFolder, entry: FileEntry, stamps: Mapping[str, Stamp] | None, made_ns: int) -> bool:
    """Whether the file counts as unchanged.

    Args:
        stamps: None: it counts as unchanged if it is not newer than `made_ns`.
        made_ns: when the stage wrote its result, after all its files.
    """
    found = files.stat(entry.path)
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size_bytes:
        return False
    return found.st_mtime_ns <= made_ns if stamps is None else stamps.get(entry.path) == file_stamp(found)


def matches_stored_hash(files: SafeFolder, entry: FileEntry) -> bool:
    """Whether the file still has this hash; reads the whole file."""
    with files.file(entry.path) as descriptor:
        return os.fstat(descriptor).st_size == entry.size_bytes and open_file_sha256(descriptor) == entry.sha256
