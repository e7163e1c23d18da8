"""The folder `release` of a model: the files that would be published, to inspect or to copy elsewhere.

What one command wrote there another does not remove: a report on fewer files stays about those that are in the folder,
and files that it cannot describe stay beside it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from quantyard.publish.files import PublishedFile

FOLDER: Final = "release"
_MADE_WHOLE: Final = ("eval", ".eval_results")  # folders of the report, which is written as a whole
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def write_release(folder: Path, files: Iterable[PublishedFile], *, keep: bool = True) -> Path:
    """Write these files to `folder/release`. Models are hard links, not copies.

    Args:
        keep: files of before stay, but for an older report and for a model of these in another form (whole, in parts).
    """
    target, new, old = (folder / f"{prefix}{FOLDER}" for prefix in ("", ".new-", ".old-"))
    shutil.rmtree(new, ignore_errors=True)
    for file in files:
        path = new / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_published_file(file, path)
    if keep:
        _keep_others_published_files(target, new)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _keep_others_published_files(old: Path, new: Path) -> None:
    models = {_published_model_name(path) for path in new.glob("*.gguf")}
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        place = new / name
        is_replaced = name.parts[0] in _MADE_WHOLE or (path.suffix == ".gguf" and _published_model_name(path) in models)
        if path.is_dir() or is_replaced or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place, follow_symlinks=False)
        except OSError:
            shutil.copy2(path, place, follow_symlinks=False)


def _published_model_name(path: Path) -> str:
    """The name of a model, also by one of its parts."""
    return _PART.sub("", path.name).removesuffix(".gguf")


def _put_published_file(file: PublishedFile, path: Path) -> None:
    if isinstance(file.content, bytes):
        path.write_bytes(file.content)
        return
    try:
        os.link(file.content.resolve(), path)
    except OSError:  # another disk
        shutil.copyfile(file.content, path)
