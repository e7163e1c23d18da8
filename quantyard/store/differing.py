"""The outputs that attempts left which ended second, with other bytes: `<model>/<commit12>/differing/` in artifacts.

They are kept to be compared with what counts: a stage is not deterministic, or a machine or disk is faulty. Nothing
reads them, so they stay until `gc` removes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from quantyard.files.safe_files import remove_tree
from quantyard.records import dataclass

DIFFERING_FOLDER: Final = "differing"


@dataclass(frozen=True)
class DifferingOutputs:
    """What one attempt left."""

    path: Path
    size_bytes: int
    ended_at: datetime


def differing_outputs(artifacts: Path) -> list[DifferingOutputs]:
    """Those of all models, the oldest first; [] where there is no such folder."""
    folders = artifacts.glob(f"*/*/*/{DIFFERING_FOLDER}/*")
    found = [_outputs_in(path) for path in folders if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda each: (each.ended_at, each.path))


def remove_differing_outputs(artifacts: Path, before: datetime, *, dry_run: bool = False) -> list[DifferingOutputs]:
    """Remove those of attempts that ended before this time; returns which, or with `dry_run` which it would be."""
    old = [each for each in differing_outputs(artifacts) if each.ended_at <= before]
    for each in [] if dry_run else old:
        remove_tree(each.path)
        with suppress(OSError):  # others are left
            each.path.parent.rmdir()
    return old


def _outputs_in(folder: Path) -> DifferingOutputs:
    size_bytes = sum(status.st_size for status in _file_statuses(folder))
    return DifferingOutputs(folder, size_bytes, datetime.fromtimestamp(folder.stat().st_mtime, UTC))


def _file_statuses(folder: Path) -> Iterator[os.stat_result]:
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield Path(root, name).lstat()
