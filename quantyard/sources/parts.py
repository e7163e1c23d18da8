"""Sources that are not whole models: a LoRA adapter, or the configuration of a base model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantyard.errors import BadSource, QuantyardError
from quantyard.files.own_files import find_file, kind_of_path, list_files, typed_file_path
from quantyard.formats.names import safe_file_name
from quantyard.hub.client import HubAccess, parse_hub_repo_id, resolve_hub_repo
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.sources.hub_source import source_title
from quantyard.sources.local_source import hashed_source_files, source_file_limit
from quantyard.sources.resolve import is_source_path
from quantyard.sources.source import Source
from quantyard.store.artifact import Artifact, ModelId
from quantyard.store.hash_cache import HashCache

Files = tuple[FileEntry, ...]


@dataclass(frozen=True)
class WantedPart:
    """An input that is not a whole model: the variable naming it, the file identifying it, and the files it needs."""

    setting: str
    marker: str
    choose: Callable[[str, Files], Files]


def find_source_part(wanted: WantedPart, text: str, access: HubAccess, hashes: HashCache) -> Source:
    """The source that the text names: a path if it is written like one, or is a folder with the marker file."""
    path = typed_file_path(text)
    found = kind_of_path(path)
    if found == "folder" and (is_source_path(text) or kind_of_path(path / wanted.marker)):
        return _local_part_source(wanted, path.absolute(), hashes)
    if found == "file" or text.endswith(".gguf"):
        hint = f"Give the folder that holds {wanted.marker}, or a Hub id: {wanted.setting}=org/name"
        raise BadSource(f"{wanted.setting}={text} is a file, not a folder.", hint)
    if is_source_path(text):
        hint = f"Give a path that exists, or a Hub id: {wanted.setting}=org/name"
        raise BadSource(f"There is no folder {text}.", hint)
    return source_part_on_hub(wanted, text, access)


def _local_part_source(wanted: WantedPart, path: Path, hashes: HashCache) -> Source:
    listed = tuple(file for file in list_files(path) if "/" not in file.path)
    chosen = wanted.choose(f"{wanted.setting}={path}", listed)
    places = {file.path: find_file(path, file.path, source_file_limit(file.path)) for file in chosen}
    files = hashed_source_files(places, hashes)
    digest = files_digest(files)
    return Source(
        model=ModelId("local", safe_file_name(path.name, "lora"), digest),
        kind="huggingface",
        title=str(path),
        files=files,
        # Weights of a base model and training state are not needed.
        local=Artifact(digest, files, path, whole_folder=False, places=places),
    )


def source_part_on_hub(wanted: WantedPart, text: str, access: HubAccess) -> Source:
    """The source for a repo of the Hub."""
    with _errors_about_wanted_part(wanted):
        repo_id, revision = parse_hub_repo_id(text)
        repo = resolve_hub_repo(access, repo_id, revision)
    org, name = repo.repo_id.split("/", 1)
    return Source(
        model=ModelId(org, name, repo.commit), kind="huggingface", title=source_title(repo),
        files=wanted.choose(f"{wanted.setting}={repo.repo_id}", repo.files), repo_id=repo.repo_id,
        revision=revision or "main", license=repo.license,
    )


@contextmanager
def _errors_about_wanted_part(wanted: WantedPart) -> Iterator[None]:
    """Makes errors about MODEL name this variable instead."""
    try:
        yield
    except QuantyardError as error:
        error.hint = error.hint.replace("make build MODEL=", f"make lora {wanted.setting}=")
        error.message = f"{wanted.setting}: {error.message}"
        raise
