"""A shared store in a folder that all machines mount: ext4 or XFS on one; NFS, GlusterFS, Ceph or Lustre between many.

An object is one file under its name. It is written under `.tmp/`, with host, process and random in the name, synced,
and then given its final name at once.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from quantyard.errors import BadRequest, OutOfResources, StoreUnreachable
from quantyard.files.atomic import sync_file
from quantyard.files.if_absent import ENTRY, WAYS, Way, place_if_absent, placed_file, sync_folder
from quantyard.files.safe_files import remove_tree
from quantyard.files.unique_names import new_process_mark
from quantyard.shared_store.objects import ObjectStatus, ObjectStore, checked_object_name

TEMPORARY: Final = ".tmp"
_TRIES: Final = 20  # a folder may be removed, as empty, while a file is put into it
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
T = TypeVar("T")


class PosixObjects(ObjectStore):
    """The objects below one folder. `ways` are those to place a file, in the order of preference."""

    def __init__(self, root: Path, ways: Sequence[Way] = WAYS) -> None:
        self.root, self._ways = root, ways

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.root)

    def put_if_absent(self, name: str, content: bytes | Path) -> bool:
        """See ObjectStore."""
        with self._faults():
            final, complete = self._path(name), self._written(content)
            return self._placed(final, lambda: place_if_absent(complete, final, self._ways))

    def put(self, name: str, content: bytes | Path) -> None:
        """See ObjectStore."""
        with self._faults():
            final, complete = self._path(name), self._written(content)
            self._placed(final, lambda: complete.replace(placed_file(final)))
            sync_folder(final.parent)

    def read_bytes(self, name: str) -> bytes:
        """See ObjectStore."""
        with self._faults():
            return placed_file(self._path(name)).read_bytes()

    def read_to_file(self, name: str, target: Path) -> None:
        """See ObjectStore."""
        with self._faults():
            shutil.copyfile(placed_file(self._path(name)), target)

    def status(self, name: str) -> ObjectStatus | None:
        """See ObjectStore."""
        with self._faults(), suppress(FileNotFoundError, NotADirectoryError):
            return _status_of_file(name, placed_file(self._path(name)).stat())
        return None

    def statuses(self, prefix: str) -> Iterator[ObjectStatus]:
        """See ObjectStore."""
        checked_object_name(prefix.rstrip("/"))
        with self._faults():
            todo = [prefix.rstrip("/")]
            while todo:
                yield from self._listed(todo.pop(), todo)

    def remove(self, name: str) -> None:
        """See ObjectStore."""
        path = self._path(name)
        with self._faults(), suppress(FileNotFoundError, NotADirectoryError):
            if path.is_dir():  # an empty folder would take the name
                aside = self._temporary_path()
                path.rename(aside)
                remove_tree(aside)
            else:
                path.unlink()
            self._remove_empty_folders(path)

    def _remove_empty_folders(self, path: Path) -> None:
        with suppress(OSError):  # the first that is not empty ends it
            for above in path.relative_to(self.root).parents:
                if len(above.parts) > 1:  # cas, ac … stay
                    (self.root / above).rmdir()

    def now(self) -> datetime:
        """See ObjectStore."""
        with self._faults():
            path = self._temporary_path()
            path.touch()
            try:
                return _utc(path.stat().st_mtime)
            finally:
                path.unlink()

    def clear_temporary(self, before: datetime) -> int:
        """See ObjectStore."""
        removed = 0
        with self._faults():
            for path in (self.root / TEMPORARY).glob("*"):
                with suppress(FileNotFoundError):
                    if _utc(path.stat().st_mtime) < before:
                        remove_tree(path)
                        removed += 1
        return removed

    def _path(self, name: str) -> Path:
        return self.root / checked_object_name(name)

    def _temporary_path(self) -> Path:
        folder = self.root / TEMPORARY
        folder.mkdir(parents=True, exist_ok=True)
        return folder / str(new_process_mark())

    def _written(self, content: bytes | Path) -> Path:
        """The content, complete and synced, under a temporary name."""
        path = self._temporary_path()
        try:
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)
            sync_file(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _placed(self, final: Path, place: Callable[[], T]) -> T:
        for _ in range(_TRIES):
            final.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return place()
        raise StoreUnreachable(f"{final.parent} vanishes again and again.", "Check the mount of STORE.")

    def _listed(self, folder: str, todo: list[str]) -> Iterator[ObjectStatus]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}"
                with suppress(FileNotFoundError):
                    if not entry.is_dir():
                        yield _status_of_file(name, entry.stat())
                    elif (content := Path(entry.path) / ENTRY).exists():
                        yield _status_of_file(name, content.stat())
                    else:
                        todo.append(name)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _store_error(self.root, error) from error


def _status_of_file(name: str, found: os.stat_result) -> ObjectStatus:
    return ObjectStatus(name, found.st_size, _utc(found.st_mtime))


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _refusal(root: Path, path: str) -> str:
    """Who may not do it, and whose the folder is: a user may have another id on another machine."""
    told = f"The shared store {root} refuses uid {os.geteuid()} on {os.uname().nodename} access to {path}"
    try:
        found = root.stat()
    except OSError:
        return told
    return f"{told}; {root} belongs to uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}"


def _store_error(root: Path, error: OSError) -> Exception:
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return OutOfResources(f"The shared store {root} is full: {why}.", "Free some space: quantyard gc --store …")
    if error.errno in _REFUSED:
        hint = f"Have it writable for this uid on every machine: ls -ldn {root}; or name another folder: STORE=/path"
        return BadRequest(f"{_refusal(root, str(error.filename or root))}: {why}.", hint)
    hint = "Check its mount, then type the same command again."
    return StoreUnreachable(f"The shared store {root} failed: {why}.", hint)
