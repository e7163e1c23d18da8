"""What may be seen of a store whose runs are killed: only whole things, nothing that still runs, no secret."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from quantyard.protocol.base import StageResult
from quantyard.protocol.runner import file_sha256
from quantyard.store.manifest import read_manifest

GONE_WITHIN_S = 20.0


@dataclass
class Witness:
    """Looks at one store between its runs, and remembers what it saw."""

    artifacts: Path
    _hashes: dict[tuple[str, int, int], str] = field(default_factory=dict)  # by path, inode and time of change
    _finished: dict[str, int] = field(default_factory=dict)  # stage folder → inode, as it was when first seen

    def stages(self, pattern: str = "[!.]*") -> list[Path]:
        """The folders of finished stages, or of those that are called so."""
        return sorted(path for path in self.artifacts.glob(f"*/*/*/stages/{pattern}") if path.is_dir())

    def on_their_way(self, began: float) -> list[str]:
        """Names of the stages that were begun since then and have not made what they are to make."""
        return [path.name for path in self.stages(".*") if _began_after(path, began)]

    def check(self) -> None:
        """Every file of every stage that counts has the hash its result names, none was ever made again, and what has
        a final name is one of them.
        """
        made = set()
        for folder in self.stages():
            assert self._finished.setdefault(folder.name, folder.stat().st_ino) == folder.stat().st_ino, folder
            result = StageResult.model_validate_json((folder / "result.json").read_bytes())
            for entry in result.outputs:
                assert self._sha256(folder / "files" / entry.path) == entry.sha256, entry.path
                made.add(entry.sha256)
        assert not set(self._finished) - {folder.name for folder in self.stages()}, "one has vanished"
        for path in self.artifacts.glob("*/*/*/[!.]*.gguf"):
            assert self._sha256(path) in made, f"{path} is none that was finished"
        for path in self.artifacts.glob("*/*/*/manifest.json"):
            manifest = read_manifest(path)
            assert manifest is not None, f"{path} cannot be read"
            for record in manifest.quants.values():
                assert self._sha256(path.parent / record.file) == record.sha256
        assert not list(self.artifacts.rglob("*unreadable*"))

    def _sha256(self, path: Path) -> str:
        mark = str(path), path.stat().st_ino, path.stat().st_mtime_ns
        if mark not in self._hashes:
            self._hashes[mark] = file_sha256(path)
        return self._hashes[mark]


def _began_after(partial: Path, when: float) -> bool:
    """Whether the stage that works in this folder was begun since; what it makes must not be there already."""
    request = partial / "in" / "request.json"
    try:
        return request.stat().st_mtime >= when and not partial.with_name(partial.name[1:]).exists()
    except FileNotFoundError:
        return False


def processes_in(folder: Path) -> list[str]:
    """Command lines of the other processes that work in this folder or were told of it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            works_in = str((entry / "cwd").readlink())
        except OSError:  # it has ended meanwhile
            continue
        if works_in.startswith(str(folder)) or str(folder) in line:
            found.append(line)
    return found


def containers_in(folder: Path) -> list[str]:
    """Names of the containers whose stage writes below this folder."""
    form = '{{.Names}} {{.Label "quantyard.out"}}'
    listed = subprocess.run(["docker", "ps", "--format", form], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if line.partition(" ")[2].startswith(str(folder))]


def files_with(secret: str, *folders: Path) -> Iterator[Path]:
    """The files below these folders that hold it."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if path.stat().st_size < 1_000_000 and secret.encode() in path.read_bytes():
            yield path


def assert_nothing_is_left_over(look: Callable[[Path], list[str]], folder: Path) -> None:
    """What looked at the folder at the moment of a kill is soon gone."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := look(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
