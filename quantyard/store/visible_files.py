"""The files of a model for users, beside its manifest: links and copies of the stages' outputs."""

from __future__ import annotations

import filecmp
import os
import shutil
from contextlib import suppress
from pathlib import Path

from quantyard.files.atomic import sync_file
from quantyard.files.safe_files import SafeFolder, copy_open_file
from quantyard.store.artifact import Artifact


def link_stored_file(source: Path, target: Path) -> Path:
    """Publish one output of a stage under its final name, as a hard link."""
    if target.exists() and target.samefile(source):
        return target
    temporary = _temporary_beside_visible_file(target)
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        temporary.symlink_to(os.path.relpath(source, target.parent))
    temporary.rename(target)
    return target


def copy_file_to_store(source: Path, target: Path) -> Path:
    """Publish a file of the user as a copy, since the user may change the original later."""
    if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
        temporary = _temporary_beside_visible_file(target)
        shutil.copyfile(source, temporary)
        sync_file(temporary)
        temporary.rename(target)
    return target


def copy_stored_outputs(artifact: Artifact, target: Path) -> Path:
    """Publish all files of a stage as copies in a folder, where users may edit them. A reader sees all or none."""
    if _is_copy_of_artifact(target, artifact):
        return target
    temporary, old = _temporary_beside_visible_file(target), target.with_name(f".{target.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    with SafeFolder.opened(artifact.folder) as files:
        for entry in artifact.files:
            path = temporary / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.file(entry.path) as source:
                copy_open_file(source, path)
            sync_file(path)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    sync_file(target.parent)
    shutil.rmtree(old, ignore_errors=True)
    return target


def set_file_aside(path: Path) -> Path | None:
    """Rename an unreadable file, so that it is not overwritten.

    Returns:
        Its new path; None if there was no such file.
    """
    if not path.exists():
        return None
    aside, number = path.with_name(f"{path.stem}.unreadable-{int(path.stat().st_mtime)}{path.suffix}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.stem}.unreadable-{int(path.stat().st_mtime)}-{number}{path.suffix}")
    return path.rename(aside)


def _is_copy_of_artifact(folder: Path, artifact: Artifact) -> bool:
    """Whether the folder has exactly these files, byte for byte."""
    names = sorted(f.path for f in artifact.files)
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return there == names and filecmp.cmpfiles(artifact.folder, folder, names, shallow=False)[0] == names


def _temporary_beside_visible_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp")
