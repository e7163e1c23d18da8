"""Caches the SHA-256 of the user's files between runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from quantyard.formats.finite_json import dump_finite_json


class HashCache:
    """SHA-256 of local files by path, size, modification time and inode, so that large files are hashed only once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            loaded = json.loads(path.read_bytes())
        except (OSError, ValueError):
            loaded = {}
        self._known: dict[str, str] = loaded if isinstance(loaded, dict) else {}

    def sha256(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The file's hash, computed only when the file is new or changed."""
        stat = path.stat()
        mark = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if mark not in self._known:
            self._known[mark] = compute(path)
            self._save()
        return self._known[mark]

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(dump_finite_json(self._known, indent=0))
        temporary.rename(self._path)
