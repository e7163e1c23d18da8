"""The folders of unfinished stages, one per attempt: `stages/.<label>-<key12>.<host>-<pid>-<random>/`.

An attempt is another process' own while that lives. It is abandoned when its process is gone from this host, or, where
that cannot be known, when its folder was not touched for long; a running process touches those of its attempts. What an
abandoned attempt left can be resumed: the one whose rename succeeds has it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Final

from quantyard.files.unique_names import (
    ProcessMark,
    host_in_names,
    new_process_mark,
    parse_process_mark,
    temporary_beside,
)

TOUCHED_EVERY_S: Final = 60.0
ABANDONED_AFTER_S: Final = 1800.0


class AttemptFolders:
    """The attempts below one folder `stages`."""

    def __init__(self, stages: Path) -> None:
        self._stages = stages

    def new(self, name: str) -> Path:
        """Make the folder of a new attempt at the finished stage of this name."""
        path = self._stages / f".{name}.{new_process_mark()}"
        path.mkdir(parents=True)
        _RUNNING.add(path)
        return path

    def adopt(self, left: Path, name: str) -> Path | None:
        """Make what an abandoned attempt left this process' own; None if another process was faster."""
        path = self._stages / f".{name}.{new_process_mark()}"
        _RUNNING.add(path)
        try:
            if left.is_symlink():
                raise NotADirectoryError(left)
            left.rename(path)
        except OSError:
            _RUNNING.drop(path)
            return None
        os.utime(path)
        return path

    def end(self, path: Path) -> None:
        """Have an attempt of this process count as abandoned; its folder may be resumed."""
        _RUNNING.drop(path)

    def end_all(self) -> None:
        """The same for all attempts of this process below the folder."""
        for path in _RUNNING.below(self._stages):
            _RUNNING.drop(path)

    def abandoned(self, name: str = "") -> Iterator[tuple[str, Path]]:
        """What abandoned attempts left, and the name of the finished stage: of this one, or of all."""
        for path in sorted(self._stages.glob(f".{escape(name)}*" if name else ".*-*")):
            stage, mark = _name_and_mark(path)
            if (not name or stage == name) and path.suffix != ".tmp" and self._is_abandoned(path, mark):
                yield stage, path

    def _is_abandoned(self, path: Path, mark: ProcessMark | None) -> bool:
        if mark is None:  # of an earlier Quantyard, whose lock this process holds
            return True
        if (mark.host, mark.pid) == (host_in_names(), os.getpid()):
            return path not in _RUNNING.below(self._stages)
        return mark.is_gone or self._age_s(path) > ABANDONED_AFTER_S

    def _age_s(self, path: Path) -> float:
        """By the clock of the file system."""
        probe = temporary_beside(self._stages / "age")
        try:
            probe.touch()
            return probe.stat().st_mtime - path.stat().st_mtime
        except OSError:
            return 0.0
        finally:
            with suppress(OSError):
                probe.unlink()


def _name_and_mark(path: Path) -> tuple[str, ProcessMark | None]:
    name, _, tail = path.name[1:].rpartition(".")
    mark = parse_process_mark(tail)
    return (name, mark) if name and mark else (path.name[1:], None)


class _RunningAttempts:
    """The folders of the attempts that this process runs; a thread touches them while there are any."""

    def __init__(self) -> None:
        self._paths: set[Path] = set()
        self._lock = threading.Lock()
        self._toucher: threading.Thread | None = None

    def add(self, path: Path) -> None:
        with self._lock:
            self._paths.add(path)
            if self._toucher is None or not self._toucher.is_alive():
                self._toucher = threading.Thread(target=self._touch_them, name="attempts", daemon=True)
                self._toucher.start()

    def drop(self, path: Path) -> None:
        with self._lock:
            self._paths.discard(path)

    def below(self, stages: Path) -> set[Path]:
        with self._lock:
            return {path for path in self._paths if path.parent == stages}

    def _touch_them(self) -> None:
        while True:
            time.sleep(TOUCHED_EVERY_S)
            with self._lock:
                paths = list(self._paths)
            for path in paths:
                with suppress(OSError):
                    os.utime(path)


_RUNNING: Final = _RunningAttempts()
