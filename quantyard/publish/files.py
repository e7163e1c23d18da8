"""The files of one release: their contents and hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedFile:
    """One file of a release under its published name. Its content is a file of this machine, or bytes made just now."""

    path: str
    content: Path | bytes
    size_bytes: int
    sha256: str

    def read(self) -> bytes:
        """The whole content, for small files."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def made_release_file(path: str, content: str | bytes) -> PublishedFile:
    """A file whose content was made just now."""
    data = content.encode() if isinstance(content, str) else content
    return PublishedFile(path, data, len(data), hashlib.sha256(data).hexdigest())


def kept_release_file(path: str, local: Path, sha256: str) -> PublishedFile:
    """A file that this machine has, whose hash is known."""
    return PublishedFile(path, local, local.stat().st_size, sha256)


def git_blob_name(content: bytes) -> str:
    """What git calls a file of this content, and the Hub with it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
