"""Names that no other process anywhere makes: of temporary files, attempts and owners of locks."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Final

from quantyard.records import dataclass

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9]+")
_LONGEST_HOST: Final = 32  # characters
_LONG_S: Final = 86_400.0
_FIRST_NAMESPACE: Final = 0xEFFFFFFC  # of process ids, as Linux numbers it
_MARK: Final = re.compile(r"(?P<host>[A-Za-z0-9-]{1,64})-(?P<pid>[0-9]{1,10})-(?P<random>[0-9a-f]{12})")


@dataclass(frozen=True)
class ProcessMark:
    """Who made a name: host, process, and what tells it from other names of the same process."""

    host: str
    pid: int
    random: str

    def __str__(self) -> str:
        """As it stands in names: node-7-1234-0a1b2c3d4e5f."""
        return f"{self.host}-{self.pid}-{self.random}"

    @property
    def is_gone(self) -> bool:
        """Whether it is a process of this host that has ended; False if that cannot be known."""
        if self.host != host_in_names():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def host_in_names() -> str:
    """The name of this host, as it stands in names."""
    name = _NOT_IN_NAMES.sub("-", os.uname().nodename).strip("-")[:_LONGEST_HOST].strip("-") or "host"
    return name + _process_namespace()


def _process_namespace() -> str:
    """What tells the processes of a container from those of its host, which may have the same name; "" on a host."""
    try:
        inode = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return ""
    return "" if inode == _FIRST_NAMESPACE else f"-{inode:x}"


def new_process_mark() -> ProcessMark:
    """A mark that no other process makes, and this one makes once."""
    return ProcessMark(host_in_names(), os.getpid(), os.urandom(6).hex())


def parse_process_mark(text: str) -> ProcessMark | None:
    """The mark in a name; None if it holds none."""
    found = _MARK.fullmatch(text)
    return ProcessMark(found["host"], int(found["pid"]), found["random"]) if found else None


def temporary_beside(path: Path) -> Path:
    """A name for what will be renamed to `path`, in the same folder."""
    return path.with_name(f".{path.name}.{new_process_mark()}.tmp")


def is_left_temporary(path: Path) -> bool:
    """Whether a temporary file or folder is of a process that has ended, as far as that can be known.

    Raises:
        OSError: it is not there.
    """
    mark = parse_process_mark(path.name.removesuffix(".tmp").rpartition(".")[2])
    return mark is None or mark.is_gone or time.time() - path.stat().st_mtime > _LONG_S
