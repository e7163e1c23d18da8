"""Small files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from quantyard.files.unique_names import temporary_beside


def write_file_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that it is either the old or the new one, never a part."""
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        sync_file(temporary)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_file(path.parent)


def sync_file(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
