"""The files that a stage must and may leave, by its request: the last column of the stages table.

A stage may process hostile files. Files with other names are not kept, and if a required file is missing or wrong, none
are kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from quantyard.protocol.base import FileEntry

if TYPE_CHECKING:  # most commands use few of these models
    from quantyard.protocol.behaviour_run import BehaviourRequest
    from quantyard.protocol.builder import FetchRequest, ProjectorRequest, SplitRequest
    from quantyard.protocol.evaluation import EvaluateRequest, SharedBaselineRequest


@dataclass(frozen=True)
class Leaves:
    """The files that one run must and may leave.

    `files` are known before the run: their sizes, and their SHA-256 if the source states it.
    """

    must: frozenset[str] = frozenset()
    may: str = ""  # a regular expression for whole paths; "": nothing else
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    at_least: int = 0  # number of files
    members: tuple[str, ...] = ()  # labels of a shared run; the result has the facts of each

    def problem(self, outputs: tuple[FileEntry, ...]) -> str:
        """The first problem with these names and sizes; "" for none."""
        names = [entry.path for entry in outputs]
        if len(set(names)) < len(names):
            return f"it names {Counter(names).most_common(1)[0][0]!r} twice"
        if len(names) < self.at_least:
            return "it did not leave a file"
        if missing := sorted((self.must | set(self.files)) - set(names)):
            return f"it did not leave {missing[0]!r}"
        for entry in outputs:
            if problem := self._problem_of(entry):
                return problem
        return ""

    def _problem_of(self, entry: FileEntry) -> str:
        known = self.files.get(entry.path)
        if known is None:
            allowed = entry.path in self.must or (self.may and re.fullmatch(self.may, entry.path))
            return "" if allowed else f"it names {entry.path!r}, a file that this stage must not leave"
        if known.size_bytes != entry.size_bytes:
            return f"{entry.path!r} has {entry.size_bytes:,} bytes instead of {known.size_bytes:,}"
        return ""

    def sha256_of(self, path: str) -> str | None:
        """The SHA-256 that the source states for this file, if any."""
        return self.files[path].sha256 if path in self.files else None


LeavesOf = Callable[[Any], Leaves]


def stage_allowed_files(*must: str, may: str = "") -> LeavesOf:
    """These files for every request."""
    leaves = Leaves(frozenset(must), may)
    return lambda _request: leaves


nothing: Final = stage_allowed_files()


def stage_allowed_fetched(request: FetchRequest) -> Leaves:
    """Exactly the requested files."""
    return Leaves(files={entry.path: entry for entry in request.files})


def stage_allowed_shards(request: SplitRequest) -> Leaves:
    """One or more numbered parts."""
    return Leaves(may=rf"{re.escape(request.prefix)}-\d{{5}}-of-\d{{5}}\.gguf", at_least=1)


def stage_allowed_projectors(_request: ProjectorRequest) -> Leaves:
    """A projector in 16 bit, and perhaps in 8."""
    return Leaves(may=r"mmproj-(F16|BF16|Q8_0)\.gguf", at_least=1)


def stage_allowed_shared(request: SharedBaselineRequest) -> Leaves:
    """One record, or one for each file of a shared run."""
    name = f"{request.stage}.json"
    if not request.is_joined:
        return Leaves(frozenset({name}))
    labels = request.asked_labels
    return Leaves(frozenset(f"{label}/{name}" for label in labels), members=labels)


_EVALUATE_FILES: Final = r"[^./][^/]*/.+"  # lm-eval chooses their names
_BEHAVIOUR_FILES: Final = r"[a-z_]+/\d+\.json"


def stage_allowed_evaluated(request: EvaluateRequest) -> Leaves:
    """The evaluation and lm-eval's own files; of a shard the answers to its units of questions."""
    if request.shard:
        return Leaves(frozenset({"shard.json"}), r"units/\d+\.json")
    return Leaves(frozenset({"evaluation.json"}), _EVALUATE_FILES)


def stage_allowed_behaved(request: BehaviourRequest) -> Leaves:
    """The run and the answers of every block; of a shard those of its blocks."""
    return Leaves(frozenset() if request.shard else frozenset({"behaviour.json"}), _BEHAVIOUR_FILES)
