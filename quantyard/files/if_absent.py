"""Gives a complete file its final name unless the name is taken: on any file system, from any number of hosts.

Three ways, each atomic where the file system has it, tried in this order:

1. `link(2)`. ext4, XFS, NFS, GlusterFS, Ceph. An answer that NFS lost is told by the file's second name.
2. `renameat2(RENAME_NOREPLACE)`. Local file systems without links, such as FAT.
3. A folder with the file in it, renamed: `rename(2)` never replaces a folder that has contents, nor a file by a folder.

They exclude each other too, so hosts that mount one folder in different ways still have one winner. `O_EXCL` on the
final name is not among them: its readers would see half a file. Nor is `flock`, which some mounts keep to one host.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from quantyard.files.atomic import sync_file
from quantyard.files.renameat2 import NOREPLACE, rename_with_flags

ENTRY: Final = ".entry"  # the file in the folder of the third way
_NOT_POSSIBLE: Final = frozenset({
    errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EINVAL, errno.EXDEV,
})  # fmt: skip
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})


def place_by_link(complete: Path, final: Path) -> bool:
    """Place it as a second name of the file; the first one stays."""
    try:
        os.link(complete, final)
    except FileExistsError:  # ours, if the server made it and its answer was lost
        return complete.stat().st_nlink == 2
    return True


def place_by_rename(complete: Path, final: Path) -> bool:
    """Rename it with the flag that spares what is there."""
    try:
        rename_with_flags(complete, final, NOREPLACE)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def place_in_folder(complete: Path, final: Path) -> bool:
    """Rename a folder that holds it."""
    folder = complete.with_name(f"{complete.name}.d")
    folder.mkdir()
    complete.rename(folder / ENTRY)
    sync_folder(folder)
    try:
        folder.rename(final)
    except OSError as error:
        (folder / ENTRY).rename(complete)
        folder.rmdir()
        if error.errno in _TAKEN:
            return False
        raise
    return True


Way = Callable[[Path, Path], bool]
WAYS: Final[tuple[Way, ...]] = (place_by_link, place_by_rename, place_in_folder)


def place_if_absent(complete: Path, final: Path, ways: Sequence[Way] = WAYS) -> bool:
    """Give a synced file its final name, on the same file system, unless that is taken. `complete` is removed.

    Returns:
        Whether it has the name now.

    Raises:
        OSError: the file system can none of the ways, or failed.
    """
    try:
        for way in ways[:-1]:
            try:
                placed = way(complete, final)
            except OSError as error:
                if error.errno not in _NOT_POSSIBLE:
                    raise
            else:
                break
        else:
            placed = ways[-1](complete, final)
        sync_folder(final.parent)
        return placed
    finally:
        with suppress(OSError):
            complete.unlink()


def placed_file(final: Path) -> Path:
    """The file behind a name that `place_if_absent` gave."""
    return final / ENTRY if final.is_dir() else final


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk; some file systems (FUSE, CIFS) cannot, and keep names in their own order."""
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES):
            raise
