"""The files of a model for users, beside its manifest: links and copies of the stages' outputs."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path

from quantyard.files.atomic import sync_file
from quantyard.files.renameat2 import replace_folder
from quantyard.files.safe_files import SafeFolder, copy_open_file
from quantyard.files.unique_names import temporary_beside
from quantyard.store.artifact import Artifact


def link_stored_file(source: Path, target: Path) -> Path:
    """Publish one output of a stage under its final name, as a hard link."""
    if target.exists() and target.samefile(source):
        return target
    temporary = temporary_beside(target)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        temporary.symlink_to(os.path.relpath(source, target.parent))
    temporary.rename(target)
    return target


def copy_file_to_store(source: Path, target: Path) -> Path:
    """Publish a file of the user as a copy, since the user may change the original later."""
    if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
        temporary = temporary_beside(target)
        shutil.copyfile(source, temporary)
        sync_file(temporary)
        temporary.rename(target)
    return target


def copy_stored_outputs(artifact: Artifact, target: Path) -> Path:
    """Publish all files of a stage as copies in a folder, where users may edit them. A reader sees all or none."""
    if _is_copy_of_artifact(target, artifact):
        return target
    temporary, old = temporary_beside(target), temporary_beside(target)
    with SafeFolder.opened(artifact.folder) as files:
        for entry in artifact.files:
            path = temporary / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.file(entry.path) as source:
                copy_open_file(source, path)
            sync_file(path)
    replace_folder(temporary, target, old)
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
