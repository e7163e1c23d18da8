"""Folders of this machine that need a closer look: snapshots of the Hub's cache, and folders that are not a model."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from quantyard.errors import BadSource
from quantyard.hub.no_model import no_model_error
from quantyard.protocol.base import FileEntry
from quantyard.records import dataclass

_SNAPSHOT: Final = re.compile(
    r"models--(?:(?P<org>\w(?:-?[\w.])*)--)?(?P<name>\w(?:-?[\w.])*)/snapshots/(?P<commit>[0-9a-f]{40})"
)
_PEEKED: Final = re.compile(r"checkpoint-\d+|snapshots|[0-9a-f]{40}|global_step\d+|pytorch_model_fsdp.*")
_NAMES_AT_MOST: Final = 2000  # of a folder that is not a model
_SHA256_DIGITS, _SHA1_DIGITS = 64, 40


@dataclass(frozen=True)
class CachedRepo:
    """The repo whose snapshot a folder is. `is_proven`: every file is a blob that has the hash the Hub gave."""

    org: str  # "" for the few that have none
    name: str
    commit: str
    is_proven: bool

    @property
    def repo_id(self) -> str:
        """As on the Hub."""
        return f"{self.org}/{self.name}" if self.org else self.name

    @property
    def title(self) -> str:
        """As of a repo that was asked on the Hub."""
        return f"{self.repo_id} at {self.commit[:12]}"


def cached_hub_repo(folder: Path, files: Iterable[FileEntry], places: Mapping[str, Path]) -> CachedRepo | None:
    """The repo and commit, where the folder is a snapshot of the Hub's cache; else None.

    The cache names each blob by the hash that the Hub gave. Where all the files are such blobs and have these
    hashes, the snapshot is that commit.

    Args:
        files: the chosen files, with their SHA-256.
        places: where they really are.

    Raises:
        BadSource: a blob does not have the hash in its name.
    """
    match = _SNAPSHOT.fullmatch("/".join(folder.resolve().parts[-3:]))
    if match is None:
        return None
    repo = CachedRepo(match["org"] or "", match["name"], match["commit"], is_proven=False)
    is_proven = bool(repo.org)
    for file in files:
        place = places[file.path]
        if place.parent.name != "blobs":
            is_proven = False
        elif not _is_cache_blob_in_local_folder(place, file.sha256 or ""):
            message = f"{folder / file.path} is damaged: its content does not have the hash of its blob, {place.name}."
            again = f"hf download {repo.repo_id} --revision {repo.commit} --force-download"
            raise BadSource(message, f"Download it again: {again}")
    return replace(repo, is_proven=is_proven)


def _is_cache_blob_in_local_folder(place: Path, sha256: str) -> bool:
    """Whether the file has the hash in its name: SHA-256, or that of git for small files."""
    if len(place.name) == _SHA256_DIGITS:
        return place.name == sha256
    if len(place.name) != _SHA1_DIGITS:
        return False
    content = place.read_bytes()
    return place.name == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def no_model_folder(folder: Path) -> BadSource:
    """The error for a folder without config.json: what it is instead, by the names of its files."""
    names = list(islice(_names_in_local_folder(folder), _NAMES_AT_MOST))
    if any("/" not in name and name.endswith(".gguf") for name in names):
        listed = sorted(name for name in names if "/" not in name and name.endswith(".gguf"))
        message = f"{folder} has no config.json, so it is not a model in Hugging Face format; it holds {listed[0]}."
        return BadSource(message, f"Give the GGUF file itself: make build MODEL={folder / listed[0]}")
    told = no_model_error(str(folder), names) if any(map(_tells_of_local_folder, names)) else None
    message = f"{folder} has no config.json, so it is not a model in Hugging Face format."
    return told or BadSource(message, "Give the folder that holds config.json and *.safetensors, or one .gguf file.")


def _tells_of_local_folder(name: str) -> bool:
    """Whether a file of this name tells something about its folder."""
    endings = (".safetensors", ".bin", ".pt", ".pth", ".distcp", ".h5", ".msgpack", ".onnx", ".npz", ".nemo")
    return name.endswith((*endings, "adapter_config.json", "zero_to_fp32.py", "model_index.json"))


def _names_in_local_folder(folder: Path) -> Iterator[str]:
    """Names at the top, and in the folders of trainers and caches below it. Nothing is opened."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    name = f"{inside}{entry.name}"
                    if not entry.is_dir():
                        yield name
                    elif _PEEKED.fullmatch(entry.name) and name.count("/") < 2:
                        waiting.append(f"{name}/")
        except OSError:
            continue
