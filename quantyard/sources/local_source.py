"""Resolves a MODEL of this machine: a folder in Hugging Face format, or a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from hashlib import sha256
from pathlib import Path

from quantyard.errors import BadSource
from quantyard.files.own_files import find_file, kind_of_path, leads_out_of_folder, list_files, read_named_file
from quantyard.formats.names import name_format_fault, safe_file_name, shown_name
from quantyard.formats.safetensors import (
    MAX_INDEX_BYTES,
    SafetensorsError,
    StaleIndexError,
    read_safetensors_folder,
)
from quantyard.hub import model_card
from quantyard.hub.access import CONFIG_LIMIT_BYTES
from quantyard.hub.files import LEGAL_FILES, PICKLE_ENDINGS, select_hub_files
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.runner import file_sha256
from quantyard.quants.file_size import TensorShape
from quantyard.quants.model_config import Config
from quantyard.sources.chat_template import base_model_notes, source_chat_template
from quantyard.sources.gguf_file import gguf_cache_layers, gguf_config, gguf_notes, read_model_gguf
from quantyard.sources.local_folder import CachedRepo, cached_hub_repo, no_model_folder
from quantyard.sources.purpose import gguf_model_use, read_model_use
from quantyard.sources.quantized_source import read_source_weights, source_dtypes
from quantyard.sources.side_files import check_local_files, refuse_spoiled_text, refuse_spoiled_weights
from quantyard.sources.source import Source
from quantyard.sources.tensor_faults import refuse_faulty_tensors, unwrapped_tensors
from quantyard.store.artifact import Artifact, ModelId
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import SourceCard

_TEXT_LIMIT = 16 * 2**20  # bytes of a README or a licence
_SIDE_LIMIT = 512 * 2**20  # bytes of a tokenizer; the largest have some 50 MB
_WEIGHTS = (".safetensors", ".gguf", *PICKLE_ENDINGS)


def local_folder_source(path: Path, hashes: HashCache, *, allow_pickle: bool, gguf_file: str | None) -> Source:
    """The source of a folder.

    Raises:
        BadSource, NeedsPermission: it is not a model that can be built.
    """
    if not kind_of_path(path / "config.json") and not gguf_file:
        raise no_model_folder(path)  # before walking the folder, which may be the whole disk
    chosen = select_hub_files(
        str(path), list_files(path), lambda name: _small_file_of_local_source(path, name), allow_pickle=allow_pickle,
        gguf_file=gguf_file,
    )
    places = {file.path: find_file(path, file.path, source_file_limit(file.path)) for file in chosen.files}
    if chosen.kind == "gguf" and chosen.gguf_file:
        return local_gguf_source(path / chosen.gguf_file, hashes)
    # Check the headers before reading many GB for their hashes.
    config = _local_source_config(path)
    notes = [chosen.note] if chosen.note else []
    weights = [name for name in places if name.endswith(".safetensors")]
    for name in weights:
        refuse_spoiled_weights(str(path), name, places[name])
    tensors, renamed = unwrapped_tensors(_local_source_tensors(path, list(places)) if weights else None)
    held = read_source_weights(config, tensors)
    config, tensors = held.config, held.tensors
    refuse_faulty_tensors(str(path), config, tensors or ())
    notes += [renamed] if renamed else []
    notes += [*held.notes, *_side_file_notes_of_source(path, places, hashes, config, tensors or ())]
    files = hashed_source_files(places, hashes)
    digest = files_digest(files)
    license_, card, base_model = _local_source_card(places.get("README.md"), hashes)

    def read(name: str) -> bytes:
        return read_named_file(places[name], _SIDE_LIMIT)

    chats = source_chat_template(places, read)
    use = read_model_use(config, places, read, (*card.tags, card.pipeline_tag), path.name)
    source = Source(
        model=ModelId("local", safe_file_name(path.name), digest), kind="huggingface", title=str(path), files=files,
        license=license_, local=Artifact(digest, files, path, whole_folder=False, places=places),
        dtypes=source_dtypes(tensors or ()), tensors=tensors, config=config, card=card, quantization=held.quantization,
        base_model=base_model if held.quantization else "",
        notes=(*notes, *use.notes, *(base_model_notes(chats, config) if use.purpose == "generate" else ())),
        has_chat_template=chats, use=use,
    )
    return _source_named_by_hub_cache(source, path, cached_hub_repo(path, files, places))


def _side_file_notes_of_source(
    path: Path, places: Mapping[str, Path], hashes: HashCache, config: Config, tensors: Sequence[TensorShape]
) -> list[str]:
    """The notes of `check_local_files`. To parse a tokenizer takes a tenth of a build with nothing to do, so the notes
    of files that passed are kept.
    """
    rules = _rules_by_code("side files", sorted(Path(__file__).parent.glob("*.py")))
    check = partial(check_local_files, str(path), places, config, tensors)
    notes: list[str] = json.loads(hashes.text(rules, places, lambda: json.dumps(check())))
    return notes


def _local_source_card(readme: Path | None, hashes: HashCache) -> tuple[str | None, SourceCard, str]:
    """The licence, the card and the base model that a README names. To load a YAML parser takes a twentieth of a build
    with nothing to do, so they are kept.
    """
    if readme is None:
        return None, SourceCard(), ""
    code = Path(model_card.__file__)
    rules = _rules_by_code("card", [code, code.parents[1] / "formats/strict_yaml.py"])

    def read() -> str:
        text = read_named_file(readme, _TEXT_LIMIT).decode(errors="replace")
        license_, card = model_card.hub_card_of_readme(text)
        return json.dumps([license_, card.model_dump(mode="json"), model_card.hub_base_model_of_readme(text)])

    license_, card, base_model = json.loads(hashes.text(rules, {readme.name: readme}, read))
    return license_, SourceCard.model_validate(card), base_model


def _rules_by_code(name: str, files: Sequence[Path]) -> str:
    """Names the rules of a kept result by their code, so that a new rule runs at once."""
    return f"{name} by {sha256(b''.join(file.read_bytes() for file in files)).hexdigest()}"


def _source_named_by_hub_cache(source: Source, path: Path, cached: CachedRepo | None) -> Source:
    """The source by the name and revision of its repo. A proven snapshot is the very model of the Hub."""
    if cached is None:
        return source
    notes = (*source.notes, f"It is read from the Hub's cache, {path}.")
    if not cached.is_proven:
        model = ModelId(cached.org or "local", cached.name, source.model.commit)
        return replace(source, model=model, revision=cached.commit, notes=notes)
    return replace(
        source, model=ModelId(cached.org, cached.name, cached.commit), title=cached.title, repo_id=cached.repo_id,
        revision=cached.commit, notes=notes,
    )


def _small_file_of_local_source(folder: Path, name: str) -> bytes:
    """An index of weights."""
    place = find_file(folder, name, MAX_INDEX_BYTES)
    try:
        return read_named_file(place, MAX_INDEX_BYTES)
    except (OSError, ValueError) as error:
        raise BadSource(f"{folder / name} cannot be read: {error}.", "Download or copy it again.") from error


def hashed_source_files(places: Mapping[str, Path], hashes: HashCache) -> tuple[FileEntry, ...]:
    """The files of a local source, with their real paths."""
    return tuple(
        FileEntry(path=name, size_bytes=place.stat().st_size, sha256=hashes.sha256(place, file_sha256))
        for name, place in places.items()
    )


def source_file_limit(name: str) -> int | None:
    """The size limit of this file of a model, bytes; None for weights."""
    if name.endswith(_WEIGHTS):
        return None
    if name == "config.json":
        return CONFIG_LIMIT_BYTES
    return _TEXT_LIMIT if any(fnmatchcase(name, pattern) for pattern in LEGAL_FILES) else _SIDE_LIMIT


def local_gguf_source(path: Path, hashes: HashCache) -> Source:
    """The source of a GGUF, given by its first part.

    Raises:
        BadSource: it is not a whole model.
    """
    if fault := name_format_fault(path.name):
        raise BadSource(f"{shown_name(path.name)} cannot name a model's file: {fault}.", "Rename it.")
    gguf = read_model_gguf(path)
    places = {shard.name: _local_source_shard(path, shard) for shard in gguf.paths}
    files = hashed_source_files(places, hashes)
    digest = files_digest(files)
    name = re.sub(r"(?i)[-.](?:[a-z]*q\d\w*|bf16|f16|f32|fp16)(?:-\d+-of-\d+)?$", "", path.stem)
    license_, card = model_card.hub_card_of_gguf(gguf.metadata, path)
    local = Artifact(digest, files, path.parent, whole_folder=False, places=places)
    return Source(
        model=ModelId("local", safe_file_name(name), digest),
        kind="gguf",
        title=str(path),
        files=files,
        license=license_,
        local=local,
        gguf_file=path.name,
        gguf=gguf,
        config=gguf_config(gguf),
        cache_layers=gguf_cache_layers(gguf),
        card=card,
        notes=gguf_notes(path.name, gguf),
        has_chat_template=gguf.chat_template is not None,
        use=gguf_model_use(gguf),
    )


def _local_source_shard(first: Path, shard: Path) -> Path:
    """The real path of a file: the first may link anywhere, since the user named it; the others must be in its folder,
    or beside its target.
    """
    if shard == first or not leads_out_of_folder(first.resolve().parent, shard):
        return shard.resolve()
    return find_file(first.parent, shard.name)


def _local_source_tensors(path: Path, names: Sequence[str]) -> tuple[TensorShape, ...]:
    try:
        files = read_safetensors_folder(path, names)
    except StaleIndexError as error:
        hint = "The index and the files are of different saves. Remove the index if the files are whole, or fetch both."
        raise BadSource(f"{error}.", hint) from error
    except SafetensorsError as error:
        raise BadSource(str(error), "Download or copy it again: the file is damaged.") from error
    return tuple(TensorShape(name, tuple(t.shape), t.dtype) for file in files for name, t in file.tensors.items())


def _local_source_config(path: Path) -> Mapping[str, object]:
    try:
        text = read_named_file(path / "config.json", CONFIG_LIMIT_BYTES)
        refuse_spoiled_text(str(path), "config.json", text)
        config = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: brackets nested thousands deep
        raise BadSource(f"{path / 'config.json'} is not valid JSON: {error}", "Download the model again.") from error
    if not isinstance(config, dict):
        raise BadSource(f"{path / 'config.json'} holds no JSON object.", "Download the model again.")
    return config
