"""Which files a stage may leave, by its request: the last column of the stages table.

A stage works on hostile files. What it leaves under another name than these is not kept, and where it leaves less or
other than it must, nothing of it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from quantyard.protocol.base import FileEntry
from quantyard.protocol.builder import FetchRequest, SplitRequest
from quantyard.protocol.evaluation import DivergenceRequest


@dataclass(frozen=True)
class Leaves:
    """What one run must leave, and may.

    `files` are known before it runs: their sizes, and their SHA-256 where the source tells it.
    """

    must: frozenset[str] = frozenset()
    may: str = ""  # a regular expression of whole paths; "": nothing else
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    at_least: int = 0  # files
    members: tuple[str, ...] = ()  # files that are read in step: the facts hold those of each

    def problem(self, outputs: tuple[FileEntry, ...]) -> str:
        """What is wrong with these names and sizes; "" if nothing is."""
        names = [entry.path for entry in outputs]
        if len(set(names)) < len(names):
            return f"it names {Counter(names).most_common(1)[0][0]!r} twice"
        if len(names) < self.at_least:
            return "it left no file"
        if missing := sorted((self.must | set(self.files)) - set(names)):
            return f"it left no {missing[0]!r}"
        for entry in outputs:
            if problem := self._problem_of(entry):
                return problem
        return ""

    def _problem_of(self, entry: FileEntry) -> str:
        known = self.files.get(entry.path)
        if known is None:
            allowed = entry.path in self.must or (self.may and re.fullmatch(self.may, entry.path))
            return "" if allowed else f"it names {entry.path!r}, a file that this stage does not leave"
        if known.size_bytes != entry.size_bytes:
            return f"{entry.path!r} has {entry.size_bytes:,} bytes, and was asked for with {known.size_bytes:,}"
        return ""

    def sha256_of(self, path: str) -> str | None:
        """What the source says of this file."""
        return self.files[path].sha256 if path in self.files else None


LeavesOf = Callable[[Any], Leaves]


def stage_allowed_files(*must: str, may: str = "") -> LeavesOf:
    """These files, whatever was asked for."""
    leaves = Leaves(frozenset(must), may)
    return lambda _request: leaves


nothing: Final = stage_allowed_files()


def stage_allowed_fetched(request: FetchRequest) -> Leaves:
    """Exactly the files that were asked for."""
    return Leaves(files={entry.path: entry for entry in request.files})


def stage_allowed_shards(request: SplitRequest) -> Leaves:
    """One or more numbered parts."""
    return Leaves(may=rf"{re.escape(request.prefix)}-\d{{5}}-of-\d{{5}}\.gguf", at_least=1)


def stage_allowed_divergences(request: DivergenceRequest) -> Leaves:
    """One for each file that was read."""
    if not request.is_joined:
        return Leaves(frozenset({"divergence.json"}))
    asked = (request.label, *(member.label for member in request.others), request.baseline_label)
    labels = tuple(label for label in asked if label)
    return Leaves(frozenset(f"{label}/divergence.json" for label in labels), members=labels)
