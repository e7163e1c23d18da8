"""The objects of the store: sets of files, models, finished and unfinished stages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

from quantyard.errors import BadSource
from quantyard.formats.names import shown_name
from quantyard.protocol.base import FileEntry, StageRequest, StageResult
from quantyard.protocol.facts import TwinFacts
from quantyard.records import dataclass

_MODEL_NAME = re.compile(r"(?![.-])[A-Za-z0-9._-]{1,96}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of the Hub; the digest of files


@dataclass(frozen=True)
class Artifact:
    """A set of files identified by one digest, and its folder on this machine.

    `whole_folder` is False if `folder` also has other files: then only `files` belong to the artifact. `places` maps
    paths that are links to their real files.
    """

    digest: str
    files: tuple[FileEntry, ...]
    folder: Path
    whole_folder: bool = True
    places: Mapping[str, Path] = field(default_factory=dict, compare=False)

    def place_of(self, path: str) -> Path:
        """The real path of this file."""
        return self.places.get(path, self.folder / path)

    @property
    def size_bytes(self) -> int:
        """Total size of its files."""
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True)
class ModelId:
    """A model at one commit: of the Hub, or the digest of a local source's files. Each part names a folder.

    Raises:
        BadSource: a part cannot name a folder.
    """

    org: str
    name: str
    commit: str

    def __post_init__(self) -> None:
        """Check each part: it must not be a path, a hidden name, or look like an option."""
        for part, pattern in ((self.org, _MODEL_NAME), (self.name, _MODEL_NAME), (self.commit, _COMMIT)):
            if not pattern.fullmatch(part):
                raise BadSource(f"{shown_name(part)} cannot name a folder of a model.", "Name one: MODEL=org/name")

    @property
    def folder(self) -> Path:
        """The folder of its artifacts, relative to the store."""
        return Path(self.org) / self.name / self.commit[:12]


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage: its result and its outputs."""

    result: StageResult
    artifact: Artifact

    @property
    def is_provisional(self) -> bool:
        """Whether another environment may have a better result under the same key, which then replaces this one."""
        compares = self.result.stage in ("twin", "parity")
        return compares and TwinFacts.read(self.result.facts).lacks_package


@dataclass(frozen=True)
class Workspace:
    """The folders of one attempt at a stage: its `/in` and `/out`, and beside them `kept`, which it cannot see."""

    in_dir: Path
    out_dir: Path
    request: StageRequest

    @property
    def folder(self) -> Path:
        """The folder of the attempt."""
        return self.out_dir.parent

    @property
    def kept_dir(self) -> Path:
        """The folder for its checked files."""
        return self.out_dir.with_name("kept")
