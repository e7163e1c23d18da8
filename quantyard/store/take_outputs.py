"""Moves a stage's outputs from the folder that it could write to into one that it could not.

By then no process of the stage is running. Only files that the result names and that the stage may leave are moved, one
by one, without following links; everything else is removed with its folder. Sizes are compared with the disk, and every
SHA-256 is computed here; one that the stage reports is only compared.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantyard.errors import OutOfResources, ResultRefused
from quantyard.files.safe_files import (
    MAX_FOLDERS,
    MAX_PATH,
    FoundFile,
    SafeFolder,
    UnsafeFile,
    is_sparse_file,
    remove_tree,
    tame_file_mode,
)
from quantyard.protocol.allowed_outputs import Leaves
from quantyard.protocol.base import ExitCode, FileEntry, StageResult
from quantyard.protocol.checked_facts import check_result_facts
from quantyard.protocol.runner import open_file_sha256

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

FILES: Final = "files"


def store_stage_outputs(label: str, out: Path, kept: Path, result: StageResult, leaves: Leaves) -> StageResult:
    """Move the outputs from `out/files` to `kept/files`, synced to disk; returns the result with their SHA-256.

    Raises:
        ResultRefused: a file differs from the result, or the stage may not leave it.
        OutOfResources: the disk is full.
    """
    if result.exit_code is not ExitCode.DONE:
        raise ResultRefused(label, f"it ended with exit code {int(result.exit_code)}, so its files do not count")
    if problem := leaves.problem(result.outputs) or _output_names_problem(result.outputs):
        raise ResultRefused(label, problem)
    try:
        check_result_facts(result, leaves.members)
    except ValueError as error:
        raise ResultRefused(label, f"its {error}") from error
    (kept / FILES).mkdir(parents=True)
    try:
        outputs = _take_all_outputs(out, kept, result.outputs, leaves) if result.outputs else ()
    except UnsafeFile as error:
        raise ResultRefused(label, str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        hint = "Free some space, then type the same command again."
        raise OutOfResources(f"{label}: the disk is full: its files could not be kept.", hint) from error
    return result.model_copy(update={"outputs": outputs})


def _output_names_problem(outputs: tuple[FileEntry, ...]) -> str:
    for entry in outputs:
        if len(entry.path) > MAX_PATH or entry.path.count("/") >= MAX_FOLDERS:
            return f"it names a path of {len(entry.path):,} characters and {entry.path.count('/')} folders"
        if not entry.path.isprintable():
            return f"it names {entry.path!r}, which has control characters"
    return ""


def _take_all_outputs(out: Path, kept: Path, outputs: tuple[FileEntry, ...], leaves: Leaves) -> tuple[FileEntry, ...]:
    from concurrent.futures import ThreadPoolExecutor  # imported late: a build with nothing to do takes no outputs

    with ExitStack() as stack:
        theirs = stack.enter_context(SafeFolder.opened(out))
        files = stack.enter_context(theirs.folder(FILES))
        ours = stack.enter_context(SafeFolder.opened(kept / FILES))
        beside = stack.enter_context(ThreadPoolExecutor(1))  # syncs each file to disk while it is hashed here
        return tuple(_take_output(files, ours, entry, leaves.sha256_of(entry.path), beside) for entry in outputs)


def _take_output(
    files: SafeFolder, ours: SafeFolder, entry: FileEntry, wanted: str | None, beside: ThreadPoolExecutor
) -> FileEntry:
    with files.file(entry.path) as descriptor:
        _check_output_file(descriptor, entry)
        synced: Future[None] = beside.submit(os.fsync, descriptor)
        try:
            sha256 = open_file_sha256(descriptor)
        finally:
            synced.result()
        for said, who in ((entry.sha256, "the stage says"), (wanted, "it should be")):
            if said not in (None, sha256):
                raise UnsafeFile(f"{entry.path} has the SHA-256 {sha256}, and {who} {said}")
        tame_file_mode(descriptor)
        files.move(entry.path, ours)
        # The moved file must be the one that was hashed: a process that survived could have swapped it.
        moved, opened = ours.stat(entry.path), os.fstat(descriptor)
        if (moved.st_ino, moved.st_dev, opened.st_size) != (opened.st_ino, opened.st_dev, entry.size_bytes):
            raise UnsafeFile(f"{entry.path} was changed while it was read")
    return entry.model_copy(update={"sha256": sha256})


def _check_output_file(descriptor: int, entry: FileEntry) -> None:
    """Check the size, and that the file is the stage's own: with a second hard link it could be a file of the user."""
    found = os.fstat(descriptor)
    if found.st_nlink != 1:
        raise UnsafeFile(f"{entry.path} has {found.st_nlink} names: it may be a hard link to another file")
    if found.st_size != entry.size_bytes:
        raise UnsafeFile(f"{entry.path} has {found.st_size:,} bytes, and the stage says {entry.size_bytes:,}")
    if is_sparse_file(descriptor):
        raise UnsafeFile(f"{entry.path} has a size of {found.st_size:,} bytes, but most of them were never written")


def tame_unfinished_outputs(out: Path) -> None:
    """Reduce the folder of an unfinished run to plain files below `files`, which the next run may read and write.
    Links and special files, which could make it write elsewhere, are removed; if there are too many files, all are.
    """
    try:
        with SafeFolder.opened(out) as left:
            for name in left.names():
                if name != FILES:
                    remove_tree(out / name)
            with left.folder(FILES) as files:
                for found in files.walk():
                    _tame_output(files, found)
    except (UnsafeFile, OSError):
        remove_tree(out)


def _tame_output(files: SafeFolder, found: FoundFile) -> None:
    if found.is_file:
        with files.file(found.path) as descriptor:
            tame_file_mode(descriptor)
    elif found.is_folder:
        with files.folder(found.path) as folder:
            os.fchmod(folder.descriptor, 0o755)
    else:
        files.remove(found.path)


def unfinished_output_bytes(out: Path) -> int:
    """Size of the files that an unfinished run can resume from."""
    try:
        with SafeFolder.opened(out) as left, left.folder(FILES) as files:
            return sum(found.stat.st_size for found in files.walk() if found.is_file)
    except (UnsafeFile, OSError):
        return 0
