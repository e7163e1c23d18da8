"""What a store trusts between two runs: size, time of change and inode of each file that a stage left.

To hash 40 GB whenever a command looks for finished stages would take minutes. So a file counts as unchanged while its
stamp is what it was when it was hashed; where it is not, the file is hashed again. `make verify FILE=…` always does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from quantyard.files.safe_files import SafeFolder, Unsafe, read_file
from quantyard.formats.finite_json import dumps
from quantyard.formats.strict_json import load_json
from quantyard.protocol.base import FileEntry
from quantyard.protocol.runner import sha256_of_open

STAMPS: Final = "stamps.json"
TRUSTED: Final = "its size and the time it was last changed"
_MAX_BYTES: Final = 16 * 1024 * 1024
Stamp = list[int]


def stamp_of(found: os.stat_result) -> Stamp:
    """Size in bytes, time of change in nanoseconds, inode."""
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def stamps_text(files: SafeFolder, outputs: tuple[FileEntry, ...]) -> str:
    """The stamps of these files as they are now."""
    return dumps({entry.path: stamp_of(files.stat(entry.path)) for entry in outputs}) + "\n"


def read_stamps(folder: Path) -> Mapping[str, Stamp] | None:
    """The stamps that a finished stage's folder holds; None where there are none: an older Quantyard made it."""
    try:
        found = load_json(read_file(folder, STAMPS, _MAX_BYTES), _MAX_BYTES)
    except (Unsafe, ValueError, OSError):
        return None
    return found if isinstance(found, dict) else None


def is_unchanged(files: SafeFolder, entry: FileEntry, stamps: Mapping[str, Stamp] | None, made_ns: int) -> bool:
    """Whether the file can be trusted to hold what it held.

    Args:
        stamps: None: it is trusted if it is no younger than `made_ns`.
        made_ns: when the stage wrote its result, which came after all its files.
    """
    found = files.stat(entry.path)
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size_bytes:
        return False
    return found.st_mtime_ns <= made_ns if stamps is None else stamps.get(entry.path) == stamp_of(found)


def holds_the_same(files: SafeFolder, entry: FileEntry) -> bool:
    """Whether the bytes are those that were hashed once; reads the whole file."""
    with files.file(entry.path) as descriptor:
        return os.fstat(descriptor).st_size == entry.size_bytes and sha256_of_open(descriptor) == entry.sha256
