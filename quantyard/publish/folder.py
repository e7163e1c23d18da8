"""The folder `release` of a model: the files that would be published, to inspect or to copy elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from quantyard.publish.files import PublishedFile

FOLDER: Final = "release"


def write_release(folder: Path, files: Iterable[PublishedFile]) -> Path:
    """Make `folder/release` hold these files and no others. Models are hard links, not copies."""
    target, new, old = (folder / f"{prefix}{FOLDER}" for prefix in ("", ".new-", ".old-"))
    shutil.rmtree(new, ignore_errors=True)
    for file in files:
        path = new / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _put(file, path)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _put(file: PublishedFile, path: Path) -> None:
    if isinstance(file.content, bytes):
        path.write_bytes(file.content)
        return
    try:
        os.link(file.content.resolve(), path)
    except OSError:  # another disk
        shutil.copyfile(file.content, path)
