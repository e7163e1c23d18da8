"""Reading files of the user, with one rule about links.

A file that the user names is read wherever its links lead, since the user chose it. A file that is found in a
folder must lie in that folder. The Hub's cache keeps a model as a folder of links, snapshots/<commit>/<file> →
../../blobs/<hash>, so there a file may also lie among the blobs of the same repo. A link that leads anywhere else is
refused: otherwise a downloaded folder could have any file of the machine read, converted or published.

Only regular files are opened: opening a pipe may block for ever, and reading a device may never end.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from quantyard.errors import BadSource
from quantyard.formats.names import path_format_fault, shown_name
from quantyard.protocol.base import FileEntry

MAX_FILES: Final = 50_000  # of a folder; the largest models have some hundreds
_CACHED_REPO: Final = re.compile(r"(?:models|datasets|spaces)--.+")  # a folder of the Hub's cache
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


def typed_file_path(text: str) -> Path:
    """The path that was typed. If no such user exists, `~name` is an ordinary file name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def home_folder() -> Path | None:
    """The user's home; None where neither HOME nor a name of the user tells it, as in a container with `--user`."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def kind_of_path(path: Path) -> Literal["file", "folder", "other", ""]:
    """What the path is, links followed; "" if nothing is there or the path is invalid (too long, surrogates)."""
    try:
        str(path).encode()
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def list_files(folder: Path, *, every: bool = False) -> tuple[FileEntry, ...]:
    """The files below the folder, links among them, in the order of their names. Folders that are links are left out,
    and so are names that are invalid here. Nothing is opened.

    Args:
        every: include hidden folders, and refuse links to folders outside this one.

    Raises:
        BadSource: a folder cannot be read, or leads out, or there are too many files.
    """
    found: list[FileEntry] = []
    for entry in _walk_own_files(folder, every=every):
        name = os.path.relpath(entry.path, folder)
        if not path_format_fault(name):
            found.append(FileEntry(path=name, size_bytes=_own_file_size(entry)))
        if len(found) > MAX_FILES:
            hint = "Give a folder that holds what is needed and nothing else."
            raise BadSource(f"{folder} holds more than {MAX_FILES:,} files.", hint)
    return tuple(sorted(found, key=lambda file: file.path))


def _walk_own_files(folder: Path, *, every: bool) -> Iterator[os.DirEntry[str]]:
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if not _is_own_folder(entry):
                        yield entry
                    elif entry.is_symlink():
                        if every and leads_out_of_folder(folder, path := Path(entry.path)):
                            raise _file_leads_out(path, path.resolve())
                    elif every or not entry.name.startswith("."):
                        waiting.append(entry.path)
        except OSError as error:
            message = f"{shown_name(str(error.filename), 300)} cannot be read: {error.strerror}."
            raise BadSource(message, "Make it readable, or give another folder.") from error


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a ring of links
        return False


def _own_file_size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link that leads nowhere
        return 0


def find_file(folder: Path, name: str, max_bytes: int | None = None) -> Path:
    """Where this file of the folder really is.

    Raises:
        BadSource: it leads out of the folder, is not a regular file, or exceeds the size limit.
    """
    path = folder / name
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a ring of links
        why = getattr(error, "strerror", None) or "its links form a loop"
        what = "is a link that leads nowhere" if path.is_symlink() else "cannot be read"
        raise BadSource(f"{path} {what}: {why}.", "Put the file in its place, or remove the link.") from error
    if not any(real.is_relative_to(root) for root in _own_file_folders(folder)):
        raise _file_leads_out(path, real)
    if not stat.S_ISREG(status.st_mode):
        kind = next((word for test, word in _KINDS if test(status.st_mode)), "something else")
        raise BadSource(f"{path} is {kind}, not a file.", "Put the file in its place, or remove it.")
    if not os.access(real, os.R_OK):
        hint = f"Make it readable: chmod +r {shlex.quote(str(real))}"
        raise BadSource(f"{path} cannot be read: Permission denied.", hint)
    if max_bytes is not None and status.st_size > max_bytes:
        message = f"{path} has {status.st_size:,} bytes, and such a file has {max_bytes:,} at most."
        raise BadSource(message, "Download or copy it again.")
    return real


def leads_out_of_folder(folder: Path, path: Path) -> bool:
    """Whether an existing path lies outside both this folder and the Hub cache that the folder belongs to."""
    return not any(path.resolve().is_relative_to(home) for home in _own_file_folders(folder))


def _own_file_folders(folder: Path) -> tuple[Path, ...]:
    """The folders where files of this folder may lie: itself, and the blobs if it is a snapshot in the Hub's cache."""
    real = folder.resolve()
    snapshots = (place for place in (real, *real.parents) if place.parent.name == "snapshots")
    repos = (place.parents[1] for place in snapshots)
    return (real, *(repo / "blobs" for repo in repos if _CACHED_REPO.fullmatch(repo.name)))


def _file_leads_out(path: Path, real: Path) -> BadSource:
    link, there = shlex.quote(str(path)), shlex.quote(str(real))
    hint = f"If it belongs there, copy it in: rm {link} && cp {there} {link}. If not, remove the link."
    return BadSource(f"{path} is a link that leads out of its folder, to {real}.", hint)


def read_named_file(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file that the user named or `find_file` found.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is larger than `max_bytes`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would be waited for
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "it is not a file", str(path))
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return content
