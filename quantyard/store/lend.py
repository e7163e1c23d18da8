"""Gives a store finished stages of another one, as hard links: a store writes into no file of a finished stage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from quantyard.files.safe_files import remove_tree
from quantyard.files.unique_names import temporary_beside
from quantyard.store.stages import ModelStore


def lend_finished_stages(lender: ModelStore, borrower: ModelStore, stages: Sequence[str]) -> None:
    """Put the finished stages of these names (`fetch`) into the borrower, where it lacks them. A stage is found by its
    key, so one of other inputs or tools is never taken for one that is wanted.
    """
    for folder in sorted((lender.folder / "stages").glob("[!.]*-*")):
        target = borrower.folder / "stages" / folder.name
        if folder.name.partition("-")[0] in stages and not target.exists():
            partial = temporary_beside(target)
            shutil.copytree(folder, partial, copy_function=_link_stored)
            try:
                partial.rename(target)
            except OSError:  # another process was faster
                remove_tree(partial)


def _link_stored(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system
        shutil.copy2(source, target, follow_symlinks=False)


def link_beside_store(source: Path, target: Path) -> None:
    """One file of a model's folder into another model's folder, unless it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file() and not target.exists():
        _link_stored(str(source), str(target))
