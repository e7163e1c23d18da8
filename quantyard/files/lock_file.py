"""A lock for a moment, on any file system and between hosts: a file that names its holder, made only if absent.

For changes that take milliseconds. A holder that was killed is known by its process where that was on this host, and by
the file's age elsewhere. Of those who find that, one may remove the file: the one that makes a file named after its
holder.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest
from quantyard.files.if_absent import place_if_absent, placed_file
from quantyard.files.unique_names import new_process_mark, parse_process_mark, temporary_beside

_STEP_S: Final = 0.01
_ABANDONED_AFTER_S: Final = 30.0
_WAIT_S: Final = 120.0


@contextmanager
def held_lock_file(path: Path) -> Iterator[None]:
    """Hold the lock; waits while another process or thread does.

    Raises:
        BadRequest: it was not to be had within two minutes.
    """
    mark, until = str(new_process_mark()), time.monotonic() + _WAIT_S
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _taken_lock_file(path, mark):
        if time.monotonic() > until:
            raise BadRequest(f"{path} is held by {_holder_of_lock_file(path)}.", f"If that has ended: rm {path}*")
        time.sleep(_STEP_S)
    try:
        yield
    finally:
        if _holder_of_lock_file(path) == mark:
            _drop_lock_file(path)


def _taken_lock_file(path: Path, mark: str) -> bool:
    temporary = temporary_beside(path)
    temporary.write_text(mark)
    now = temporary.stat().st_mtime  # by the clock of the file system
    if place_if_absent(temporary, path):
        return True
    holder = _holder_of_lock_file(path)
    if _is_abandoned_lock_file(path, holder, now):
        _remove_abandoned_lock_file(path, holder)
    return False


def _holder_of_lock_file(path: Path) -> str:
    with suppress(OSError):
        return placed_file(path).read_text()
    return ""


def _is_abandoned_lock_file(path: Path, holder: str, now: float) -> bool:
    mark = parse_process_mark(holder)
    if mark is not None and mark.is_gone:
        return True
    with suppress(OSError):
        return now - placed_file(path).stat().st_mtime > _ABANDONED_AFTER_S
    return False


def _remove_abandoned_lock_file(path: Path, holder: str) -> None:
    right = path.with_name(f"{path.name}.{holder or 'nobody'}")
    temporary = temporary_beside(right)
    temporary.write_text(holder)
    if place_if_absent(temporary, right):
        if _holder_of_lock_file(path) == holder:  # else somebody had the right before
            _drop_lock_file(path)
        _drop_lock_file(right)


def _drop_lock_file(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_dir():
            aside = temporary_beside(path)
            path.rename(aside)
            placed_file(aside).unlink()
            aside.rmdir()
        else:
            path.unlink()
