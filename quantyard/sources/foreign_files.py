"""Finds GGUF files that other people made: of repos of the Hub, of folders, of Ollama's store and its registry.

One place that cannot be read, or one file that is not a model, does not stop the others: its error is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest, BadSource, QuantyardError
from quantyard.files.own_files import find_file, kind_of_path, list_files, typed_file_path
from quantyard.formats.names import safe_file_name, shown_name, shown_names
from quantyard.hub.client import HubAccess, parse_hub_repo_id, resolve_hub_repo
from quantyard.hub.files import hub_gguf_models
from quantyard.protocol.foreign_findings import ForeignFinding
from quantyard.requests import ForeignRequest
from quantyard.sources.gguf_file import gguf_quant_name
from quantyard.sources.hub_source import hub_source
from quantyard.sources.local_source import local_gguf_source
from quantyard.sources.ollama_store import (
    OLLAMA,
    OllamaName,
    is_ollama_registry_source,
    ollama_source,
    parse_ollama_name,
)
from quantyard.sources.resolve import is_source_path
from quantyard.sources.source import Source
from quantyard.store.hash_cache import HashCache

ALL: Final = "all"
# Quants as they stand in file names, with the prefixes of those who mix types (UD) or weigh errors (i1).
_QUANT_IN_NAME: Final = re.compile(
    r"(?i)(?<![a-z0-9])((?:UD-|i1-)?(?:[IT]?Q\d+(?:_[a-z0-9]+)*|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))(?![a-z0-9_])"
)
_PREFIX: Final = re.compile(r"(?i)^(?:UD|i1)-")
_LONGEST_OWNER: Final = 40


@dataclass(frozen=True)
class ForeignFile:
    """One GGUF that somebody else made.

    Attributes:
        label: of the report, such as `UD-Q4_K_XL@unsloth`.
        place: the repo, folder or name that was typed.
        file: its path there; of a split model the first part's.
        quant: as its name says; "" if it does not.
        revision: the Hub's commit; "" elsewhere.
        findings: what is known before it is read.
    """

    label: str
    place: str
    file: str
    quant: str
    source: Source
    revision: str = ""
    findings: tuple[ForeignFinding, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Of all its parts."""
        return self.source.size_bytes


@dataclass(frozen=True)
class ForeignFiles:
    """The files that were found, and what could not be used, by label or place."""

    files: tuple[ForeignFile, ...]
    failures: Mapping[str, QuantyardError] = field(default_factory=dict)


# Puts a model of Ollama's registry into a store, and returns the store.
PullOllama = Callable[[OllamaName], Path]
_Found = Iterator[tuple[str, str, Callable[[], ForeignFile]]]  # label, file, and what makes it


def find_foreign_files(
    asked: ForeignRequest, access: HubAccess, hashes: HashCache, pull: PullOllama
) -> ForeignFiles:
    """Every wanted file of these places, each under a label of its own. Models of Ollama's registry are pulled.

    Raises:
        BadRequest: no place is given.
    """
    if not asked.places:
        raise BadRequest("REPOS is not given.", "Name them: make compare MODEL=org/name REPOS=them/name-GGUF,folder")
    files, failures, taken = list[ForeignFile](), dict[str, QuantyardError](), set[str]()
    for place in dict.fromkeys(asked.places):
        try:
            for label, _file, make in _foreign_files_of_place(place, asked, access, hashes, pull):
                own = _unused_foreign_label(label, taken)
                try:
                    files.append(replace(make(), label=own))
                except QuantyardError as error:
                    failures[own] = error
        except QuantyardError as error:
            failures[place] = error
    return ForeignFiles(tuple(files), failures)


def _unused_foreign_label(label: str, taken: set[str]) -> str:
    """The label, numbered where another file has it: two repos may hold files of one name."""
    names = (label, *(f"{label}-{n}" for n in range(2, len(taken) + 3)))
    own = next(name for name in names if name.casefold() not in taken)
    taken.add(own.casefold())
    return own


def _foreign_files_of_place(
    place: str, asked: ForeignRequest, access: HubAccess, hashes: HashCache, pull: PullOllama
) -> _Found:
    path = typed_file_path(place)
    if is_ollama_registry_source(place):
        yield _foreign_file_of_registry(place, hashes, pull)
    elif place.startswith(OLLAMA):
        yield _foreign_file_of_ollama(place, asked.ollama, hashes)
    elif kind_of_path(path) == "folder":
        yield from _foreign_files_of_folder(place, path.absolute(), asked.wanted, hashes)
    elif kind_of_path(path) == "file":
        yield _foreign_file_of_path(place, path.absolute(), hashes)
    elif is_source_path(place):
        raise BadSource(f"There is no file or folder {shown_name(place, 300)}.", "Give a path that exists in REPOS.")
    else:
        yield from _foreign_files_of_repo(place, asked.wanted, access)


def _foreign_files_of_repo(place: str, wanted: Sequence[str], access: HubAccess) -> _Found:
    repo_id, revision = parse_hub_repo_id(place)
    repo = resolve_hub_repo(access, repo_id, revision)
    owner = repo_id.partition("/")[0]
    for first in _wanted_foreign_files(place, [file.path for file in repo.files], wanted):

        def make(first: str = first) -> ForeignFile:
            found = hub_source(f"{repo_id}@{repo.commit}", access, allow_pickle=False, gguf_file=first)
            return _foreign_file(place, first, _foreign_source_without_texts(found), repo.commit)

        yield _foreign_label(first, owner), first, make


def _foreign_source_without_texts(source: Source) -> Source:
    """The parts of the model alone: licences and cards are not measured."""
    return replace(source, files=tuple(file for file in source.files if file.path.lower().endswith(".gguf")))


def _foreign_files_of_folder(place: str, folder: Path, wanted: Sequence[str], hashes: HashCache) -> _Found:
    for first in _wanted_foreign_files(place, [file.path for file in list_files(folder)], wanted):

        def make(first: str = first) -> ForeignFile:
            find_file(folder, first)  # a link may not lead out of a folder that was only named
            return _foreign_file(place, first, local_gguf_source(folder / first, hashes))

        yield _foreign_label(first, folder.name), first, make


def _foreign_file_of_path(place: str, path: Path, hashes: HashCache) -> tuple[str, str, Callable[[], ForeignFile]]:
    label = _foreign_label(path.name, path.parent.name)
    return label, path.name, lambda: _foreign_file(place, path.name, local_gguf_source(path, hashes))


def _foreign_file_of_ollama(place: str, store: Path, hashes: HashCache) -> tuple[str, str, Callable[[], ForeignFile]]:
    def make() -> ForeignFile:
        found = ollama_source(place, store, hashes)
        return replace(_foreign_file(place, found.file, found.source), findings=found.findings)

    return _foreign_label(place.removeprefix(OLLAMA), "ollama"), place, make


def _foreign_file_of_registry(
    place: str, hashes: HashCache, pull: PullOllama
) -> tuple[str, str, Callable[[], ForeignFile]]:
    name = parse_ollama_name(place)

    def make() -> ForeignFile:
        found = ollama_source(f"{OLLAMA}{name}", pull(name), hashes)
        return replace(_foreign_file(place, str(name), found.source), findings=found.findings)

    return _foreign_label(f"{name.name}:{name.tag}", "ollama"), place, make


def _foreign_file(place: str, file: str, source: Source, revision: str = "") -> ForeignFile:
    return ForeignFile("", place, file, foreign_quant(file) or _foreign_quant_in_header(source), source, revision)


def _foreign_quant_in_header(source: Source) -> str:
    found = gguf_quant_name(source.gguf) if source.gguf else ""
    return found if " " not in found else ""


def foreign_quant(file: str) -> str:
    """The quant that a file's name tells, with the prefix of its makers; "" if it tells none."""
    found = _QUANT_IN_NAME.findall(file.rpartition("/")[2])
    return str(found[-1]) if found else ""


def foreign_base_quant(quant: str) -> str:
    """The quant without the prefix of its makers, in capitals: Q4_K_M of i1-Q4_K_M."""
    return _PREFIX.sub("", quant).upper()


def _foreign_label(file: str, owner: str) -> str:
    name = foreign_quant(file) or safe_file_name(file.rpartition("/")[2].removesuffix(".gguf"))
    return f"{name}@{safe_file_name(owner, 'folder')[:_LONGEST_OWNER]}"


def _wanted_foreign_files(place: str, names: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """The first part of each wanted model, in the order of their names.

    Raises:
        BadSource: there is none; the message names what is there.
    """
    models = [parts[0] for parts in hub_gguf_models(names).values()]
    found = [first for first in models if any(_is_wanted_foreign_file(first, what) for what in wanted)]
    if found:
        return found
    if not models:
        raise BadSource(f"{place} does not hold any GGUF model.", "Name a repo or a folder with GGUF files in REPOS.")
    message = f"{place} holds no file of {', '.join(wanted)}; it holds {shown_names(models)}."
    raise BadSource(message, "Name them by quants or patterns: FILES=UD-Q4_K_XL,*IQ4*, or take all: FILES=all")


def _is_wanted_foreign_file(file: str, what: str) -> bool:
    name = file.rpartition("/")[2]
    if what.lower() == ALL:
        return True
    if "*" in what or "?" in what or what.lower().endswith(".gguf"):
        return fnmatchcase(name.lower(), what.lower()) or fnmatchcase(file.lower(), what.lower())
    quant = foreign_quant(file)
    return what.upper() in (quant.upper(), foreign_base_quant(quant))
