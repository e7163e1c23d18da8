"""Caches between runs what was computed from the user's files: their SHA-256, and the notes of their checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

from quantyard.files.unique_names import temporary_beside
from quantyard.formats.finite_json import dump_finite_json


class HashCache:
    """What is known of local files by path, size, modification time and inode, so that large files are read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            loaded = json.loads(path.read_bytes())
        except (OSError, ValueError):
            loaded = {}
        self._known: dict[str, str] = loaded if isinstance(loaded, dict) else {}

    def sha256(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The file's hash, computed only when the file is new or changed."""
        return self._remembered(_hash_cache_key(path), lambda: compute(path))

    def text(self, rules: str, files: Mapping[str, Path], compute: Callable[[], str]) -> str:
        """The result of `rules` (a name and a version) for these files, computed only if a file is new or changed."""
        marks = "\n".join(f"{name}|{_hash_cache_key(path)}" for name, path in sorted(files.items()))
        return self._remembered(f"{rules}|{sha256(marks.encode()).hexdigest()}", compute)

    def _remembered(self, mark: str, compute: Callable[[], str]) -> str:
        if mark not in self._known:
            self._known[mark] = compute()
            self._save()
        return self._known[mark]

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(self._path)
        temporary.write_text(dump_finite_json(self._known, indent=0))
        temporary.rename(self._path)


def _hash_cache_key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
