"""Access to a folder that others can write to: links are never followed, at any depth, and only regular files count.

A path is walked one name at a time from a descriptor of the folder (openat with O_NOFOLLOW), so that a name replaced
meanwhile does no harm. FIFOs, devices and sockets are refused before they are opened: opening one may block, or act on
a device.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from quantyard.records import dataclass

MAX_PATH: Final = 1024  # characters
MAX_FOLDERS: Final = 32  # in each other
MAX_ENTRIES: Final = 200_000
_HOLES_BYTES: Final = 1 << 30
_MAX_HOLES: Final = 10_000
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = _FILE | os.O_DIRECTORY
_SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWGRP | stat.S_IWOTH
_KINDS: Final = (
    (stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISREG, "a file"),
)  # fmt: skip


class UnsafeFile(ValueError):
    """The path is missing, or is not a regular file or folder. The message names the path and the reason."""


@dataclass(frozen=True)
class FoundFile:
    """One name below a folder: its relative path, and what is there."""

    path: str
    stat: os.stat_result

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file with a single name: a second hard link could lie anywhere."""
        return stat.S_ISREG(self.stat.st_mode) and self.stat.st_nlink == 1

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, not a link to one."""
        return stat.S_ISDIR(self.stat.st_mode)


class SafeFolder:
    """A folder held open. Every path is relative to it, "/" between names."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[SafeFolder]:
        """Hold the folder at `path` open. Its parents are trusted; the last name in the path must not be a link.

        Raises:
            Unsafe: it is not a folder.
        """
        with _closing_descriptor(_open_safe_file(str(path), _FOLDER, None, path.name)) as descriptor:
            yield cls(descriptor)

    @contextmanager
    def folder(self, path: str) -> Iterator[SafeFolder]:
        """A folder below it.

        Raises:
            Unsafe: it is not a folder, or lies below a link.
        """
        with (
            self._parent(path) as (parent, name),
            _closing_descriptor(_open_safe_file(name, _FOLDER, parent, path)) as descriptor,
        ):
            yield SafeFolder(descriptor)

    @contextmanager
    def file(self, path: str) -> Iterator[int]:
        """A descriptor of a regular file, to read from.

        Raises:
            Unsafe: it is not a regular file, or lies below a link.
        """
        with self._parent(path) as (parent, name):
            _check_file(_stat_safe_file(name, parent, path), path)
            descriptor = _open_safe_file(name, _FILE, parent, path)
        with _closing_descriptor(descriptor):
            _check_file(os.fstat(descriptor), path)
            yield descriptor

    def read(self, path: str, max_bytes: int) -> bytes:
        """All bytes of a small file.

        Raises:
            Unsafe: it is not a regular file, or larger than `max_bytes`.
        """
        with self.file(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            content = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise UnsafeFile(f"{path} is larger than {max_bytes:,} bytes")
        return content

    def stat(self, path: str) -> os.stat_result:
        """The status of the path itself, never of a link's target.

        Raises:
            Unsafe: it does not exist, or lies below a link.
        """
        with self._parent(path) as (parent, name):
            return _stat_safe_file(name, parent, path)

    def walk(self) -> Iterator[FoundFile]:
        """Everything below it, each folder before its contents.

        Raises:
            Unsafe: it holds too many entries, or is nested too deeply.
        """
        todo, count = [""], 0
        while todo:
            above = todo.pop()
            for name in self._names(above):
                count += 1
                path = f"{above}/{name}" if above else name
                if count > MAX_ENTRIES or path.count("/") >= MAX_FOLDERS:
                    raise UnsafeFile(f"{above or 'it'} holds more than {MAX_ENTRIES:,} names, or {MAX_FOLDERS} levels")
                with suppress(UnsafeFile):  # removed meanwhile
                    found = FoundFile(path, self.stat(path))
                    yield found
                    todo += [path] if found.is_folder else []

    def names(self) -> list[str]:
        """The names in it."""
        return sorted(os.listdir(self.descriptor))  # noqa: PTH208  (pathlib cannot list a descriptor)

    def remove(self, path: str) -> None:
        """Remove anything but a folder."""
        with self._parent(path) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def move(self, path: str, target: SafeFolder) -> None:
        """Move a file to another folder of the same disk, under the same path.

        Raises:
            Unsafe: the name is taken.
        """
        *above, _ = path.split("/")
        for depth in range(1, len(above) + 1):
            target._make_folder("/".join(above[:depth]))
        with self._parent(path) as (parent, name), target._parent(path) as (their_parent, their_name):
            with suppress(FileNotFoundError):
                os.stat(their_name, dir_fd=their_parent, follow_symlinks=False)
                raise UnsafeFile(f"{path} is there twice")
            os.rename(name, their_name, src_dir_fd=parent, dst_dir_fd=their_parent)

    def _make_folder(self, path: str) -> None:
        with self._parent(path) as (parent, name), suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)

    def _names(self, path: str) -> list[str]:
        with suppress(UnsafeFile, OSError), self.folder(path) if path else _safe_folder_itself(self) as folder:
            return folder.names()
        return []

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        *above, name = path.split("/")
        descriptor = os.dup(self.descriptor)
        try:
            for depth, part in enumerate(above, 1):
                inner = _open_safe_file(part, _FOLDER, descriptor, "/".join(above[:depth]))
                os.close(descriptor)
                descriptor = inner
            yield descriptor, name
        finally:
            os.close(descriptor)


def read_file_below(folder: Path, path: str, max_bytes: int) -> bytes:
    """All bytes of a small file below `folder`.

    Raises:
        Unsafe: it is missing, not a regular file, below a link, or larger than `max_bytes`.
    """
    with SafeFolder.opened(folder) as opened:
        return opened.read(path, max_bytes)


def copy_open_file(descriptor: int, target: Path) -> None:
    """Copy an open file to a new one."""
    with open(descriptor, "rb", closefd=False) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def tame_file_mode(descriptor: int) -> None:
    """Clear the setuid, setgid and write bits for others; let the owner read it."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if (tamed := (mode & ~_SPECIAL_BITS) | stat.S_IRUSR | stat.S_IWUSR) != mode:
        os.fchmod(descriptor, tamed)


def is_sparse_file(descriptor: int) -> bool:
    """Whether more than half of a large file was never written. Such a file takes no disk space, but costs its reader
    time and memory. False if the file system cannot tell.
    """
    size = os.fstat(descriptor).st_size
    if size < _HOLES_BYTES or not hasattr(os, "SEEK_DATA"):
        return False
    written, at = 0, 0
    for _ in range(_MAX_HOLES):
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError:  # no further data: the rest is a hole
            break
        written += at - begin
        if at >= size:
            break
    os.lseek(descriptor, 0, os.SEEK_SET)
    return size - written > size // 2


def remove_tree(path: Path) -> None:
    """Remove a folder with its contents, or one file, at any depth and with any names and modes. No link is followed:
    nested folders are moved up and emptied one by one.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        with suppress(PermissionError):
            path.chmod(0o700)
        with SafeFolder.opened(path) as top:
            _empty_folder(top.descriptor)
        path.rmdir()


def _empty_folder(top: int) -> None:
    raised = 0
    while names := SafeFolder(top).names():
        for name in names:
            if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=top)
                continue
            with _closing_descriptor(_open_any_folder(name, top)) as inner:
                for below in SafeFolder(inner).names():
                    if stat.S_ISDIR(os.stat(below, dir_fd=inner, follow_symlinks=False).st_mode):
                        os.chmod(below, 0o700, dir_fd=inner)  # a folder that cannot be written cannot be moved either
                        raised += 1
                        os.rename(below, _free_name_in_folder(top, raised), src_dir_fd=inner, dst_dir_fd=top)
                    else:
                        os.unlink(below, dir_fd=inner)
            os.rmdir(name, dir_fd=top)


def _free_name_in_folder(top: int, number: int) -> str:
    name = f".removed-{number}"
    while True:
        try:
            os.stat(name, dir_fd=top, follow_symlinks=False)
        except FileNotFoundError:
            return name
        name += "-"


def _open_any_folder(name: str, parent: int) -> int:
    os.chmod(name, 0o700, dir_fd=parent)
    return os.open(name, _FOLDER, dir_fd=parent)


def _check_file(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnsafeFile(f"{path} is {_file_kind(found.st_mode)}, not a file")


def _stat_safe_file(name: str, parent: int, path: str) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except (OSError, ValueError) as error:
        raise UnsafeFile(f"{path} is not there") from error


def _open_safe_file(name: str, flags: int, parent: int | None, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=parent)
    except (OSError, ValueError) as error:
        raise UnsafeFile(f"{path} {_unsafe_file_reason(name, parent, error)}") from error


def _unsafe_file_reason(name: str, parent: int | None, error: Exception) -> str:
    """Why it could not be opened: the kind of file found instead, else the system's message."""
    with suppress(OSError, ValueError):
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if isinstance(error, NotADirectoryError) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return f"is {_file_kind(mode)}"
    return "is not there" if isinstance(error, FileNotFoundError) else f"cannot be opened: {error}"


def _file_kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "something else")


@contextmanager
def _closing_descriptor(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _safe_folder_itself(folder: SafeFolder) -> Iterator[SafeFolder]:
    yield folder
