"""Inputs of stages on this node's disk, by digest, so that stages that read the same model copy it once.

A file in use is held with a shared lock, so that another stage of this node does not remove it to make room. On a
folder that several nodes share, such a lock may not reach the others: then a stage can lose an input, fail, and run
again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from quantyard.errors import NotEnoughDisk
from quantyard.formatting.numbers import format_bytes
from quantyard.protocol.node_spec import NodeInput
from quantyard.shared_store.contents import get_content
from quantyard.shared_store.objects import ObjectStore
from quantyard.store.artifact import Artifact

_RESERVE_BYTES = 64 * 2**20


class InputCache:
    """The contents of one store in a folder of this node.

    Args:
        folder: made if missing; one file for each digest.
    """

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        folder.mkdir(parents=True, exist_ok=True)

    def fetch_input(self, given: NodeInput, held: ExitStack) -> Artifact:
        """All files of an input, which stay here until `held` is closed.

        Raises:
            FileNotFoundError, StoreDamaged: the store lacks a content, or has another.
        """
        places = {entry.path: self._fetch_content(entry.sha256 or "", held) for entry in given.files}
        return Artifact(given.digest, given.files, self._folder, whole_folder=False, places=places)

    def missing_bytes(self, inputs: list[NodeInput]) -> int:
        """How many bytes must still be copied to this node."""
        wanted = {entry.sha256: entry.size_bytes for given in inputs for entry in given.files}
        return sum(size for sha256, size in wanted.items() if not (self._folder / str(sha256)).exists())

    def make_room(self, needed_bytes: int) -> None:
        """Remove what was not used for longest, until this many bytes are free.

        Raises:
            NotEnoughDisk: they cannot be had.
        """
        for path in self._least_used():
            if self._free_bytes() >= needed_bytes + _RESERVE_BYTES:
                return
            _remove_unused_file(path)
        if (free := self._free_bytes()) < needed_bytes + _RESERVE_BYTES:
            given, needed = format_bytes(free), format_bytes(needed_bytes)
            message = f"{self._folder.parent} has {given} free, and the stage needs {needed}."
            raise NotEnoughDisk(message, "Free some space on that node, or name another folder: SCRATCH=/path")

    def _fetch_content(self, sha256: str, held: ExitStack) -> Path:
        path = self._folder / sha256
        while not _hold_cached_file(path, held):
            get_content(self._store, sha256, path)
        return path

    def _least_used(self) -> Iterator[Path]:
        def used_at(path: Path) -> float:
            with suppress(OSError):
                return path.stat().st_mtime
            return 0.0

        yield from sorted(self._folder.iterdir(), key=used_at)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free


def _hold_cached_file(path: Path, held: ExitStack) -> bool:
    """Hold a file, and note that it is used now; False if it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:  # removed before the lock
        os.close(descriptor)
        return False
    held.callback(os.close, descriptor)
    with suppress(OSError):
        os.utime(path)
    return True


def _remove_unused_file(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if it is in use
            path.unlink()
        finally:
            os.close(descriptor)
