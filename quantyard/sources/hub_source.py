"""Resolves a MODEL of the Hub, by what its small files and the headers of its weights tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace

from quantyard.errors import QuantyardError
from quantyard.formats.file_kinds import HEAD_BYTES
from quantyard.formats.gguf import GgufError, GgufHeader, open_gguf_beginning, read_gguf_beginning
from quantyard.formats.safetensors import MAX_INDEX_BYTES
from quantyard.formats.sentencepiece import (
    BEGINNING_BYTES,
    TOKENIZER,
    needs_sentencepiece_check,
    parse_tokenizer_beginning,
)
from quantyard.hub.client import (
    HubAccess,
    HubRepo,
    hub_tensor_shapes,
    parse_hub_config,
    parse_hub_repo_id,
    read_hub_config,
    read_hub_file,
    read_hub_files,
    resolve_hub_repo,
)
from quantyard.hub.files import Selection, select_hub_files
from quantyard.memory.layers import ModelLayers
from quantyard.protocol.base import FileEntry
from quantyard.sources.architectures import source_architecture
from quantyard.sources.chat_template import base_model_notes, source_chat_template
from quantyard.sources.gguf_file import gguf_cache_layers, gguf_config, gguf_notes, refuse_other_gguf
from quantyard.sources.purpose import ModelUse, gguf_model_use, read_model_use
from quantyard.sources.quantized_source import read_source_weights, source_dtypes
from quantyard.sources.side_files import (
    parse_side_json,
    refuse_missing_sentencepiece,
    refuse_missing_tokenizer,
    refuse_spoiled_weights,
)
from quantyard.sources.source import Source
from quantyard.sources.tensor_faults import refuse_faulty_tensors, unwrapped_tensors
from quantyard.store.artifact import ModelId

_GGUF_HEAD_BYTES = 64 * 2**10  # what a GGUF is stands before its vocabulary
_GGUF_HEADER_BYTES = (8 * 2**20, 32 * 2**20)  # a vocabulary of 250,000 words and its merges take some 15 MB
_JSON_BYTES = 256 * 2**10  # of a file that a plan reads; tokenizers are larger


def hub_source(model: str, access: HubAccess, *, allow_pickle: bool, gguf_file: str | None) -> Source:
    """The source of `org/name[@revision]`; nothing but small files and headers is downloaded.

    Raises:
        BadSource, NeedsPermission: it is not a model that can be built.
        HubError: the Hub refused or did not answer.
    """
    repo_id, revision = parse_hub_repo_id(model)
    repo = resolve_hub_repo(access, repo_id, revision)
    sizes = {file.path: file.size_bytes for file in repo.files}
    texts: dict[str, bytes] = {}  # of small files, read once

    def read(name: str) -> bytes:
        return texts[name] if name in texts else read_hub_file(access, repo, name, min(sizes[name], MAX_INDEX_BYTES))

    chosen = select_hub_files(repo.repo_id, repo.files, read, allow_pickle=allow_pickle, gguf_file=gguf_file)
    org, name = repo.repo_id.split("/", 1)
    is_hf = chosen.kind == "huggingface"
    texts |= _small_texts_of_hub_source(access, repo, chosen) if is_hf else {}
    config = _hub_source_config(access, repo, texts) if is_hf else {}
    chats = source_chat_template({file.path for file in chosen.files}, read) if is_hf else None
    tags = (*repo.card.tags, repo.card.pipeline_tag)
    names = {file.path for file in chosen.files}
    use = read_model_use(config, names, read, tags, name) if is_hf else ModelUse()
    found, renamed = unwrapped_tensors(hub_tensor_shapes(access, repo, chosen.files) if is_hf else None)
    if chosen.gguf_file:
        _check_hub_source_gguf(access, repo, chosen.gguf_file, sizes[chosen.gguf_file])
    gguf, layers = _hub_source_gguf(access, repo, chosen) if chosen.gguf_file else (None, None)
    held = read_source_weights(config, found)
    if is_hf:
        _check_hub_source_files(access, repo, chosen, texts)
        refuse_missing_tokenizer(repo.repo_id, names, config)
        _check_hub_source_sentencepiece(access, repo, sizes, names, config)
        refuse_faulty_tensors(repo.repo_id, held.config, held.tensors or ())
    notes = [note for note in (chosen.note, renamed, *held.notes) if note and is_hf]
    notes += gguf_notes(chosen.gguf_file or "", gguf) if gguf else []
    dtypes = source_dtypes(held.tensors) if held.quantization and held.tensors else repo.dtypes
    return Source(
        model=ModelId(org, name, repo.commit), kind=chosen.kind, title=source_title(repo), files=chosen.files,
        repo_id=repo.repo_id, revision=revision or "main", license=repo.license, gguf_file=chosen.gguf_file,
        dtypes=dtypes, tensors=held.tensors, config=gguf_config(gguf) if gguf else held.config, card=repo.card,
        has_chat_template=gguf.chat_template is not None if gguf else chats, gguf=gguf, cache_layers=layers,
        quantization=held.quantization, base_model=repo.base_model,
        notes=(*notes, *use.notes, *(base_model_notes(chats, config) if use.purpose == "generate" else ())),
        use=gguf_model_use(gguf) if gguf else use,
    )


def _small_texts_of_hub_source(access: HubAccess, repo: HubRepo, chosen: Selection) -> Mapping[str, bytes]:
    """The JSON files that a plan reads, but for indexes, as far as they can be had."""
    small = [f.path for f in chosen.files if f.path.endswith(".json") and f.size_bytes <= _JSON_BYTES]
    return read_hub_files(access, repo, [name for name in small if not name.endswith(".index.json")])


def _hub_source_config(access: HubAccess, repo: HubRepo, texts: Mapping[str, bytes]) -> Mapping[str, object]:
    """config.json; empty where it cannot be read."""
    return parse_hub_config(texts["config.json"]) if "config.json" in texts else read_hub_config(access, repo)


def _check_hub_source_files(access: HubAccess, repo: HubRepo, chosen: Selection, texts: Mapping[str, bytes]) -> None:
    """Refuse small files of the repo that are not what their names say, before the large ones are downloaded."""
    for name, text in texts.items():
        parse_side_json(repo.repo_id, name, text)
    for file in chosen.files:
        if file.path.endswith(".safetensors") and file.size_bytes < HEAD_BYTES:
            head = read_hub_files(access, repo, [file.path]).get(file.path, b"-")
            refuse_spoiled_weights(repo.repo_id, file.path, head)


def _check_hub_source_sentencepiece(
    access: HubAccess, repo: HubRepo, sizes: Mapping[str, int], names: Collection[str], config: Mapping[str, object]
) -> None:
    """Refuse a SentencePiece tokenizer without its own file, by the beginning of tokenizer.json."""
    if not needs_sentencepiece_check(names, source_architecture(config)):
        return
    try:
        head = read_hub_file(access, repo, TOKENIZER, min(BEGINNING_BYTES, sizes[TOKENIZER]))
    except QuantyardError:  # the plan says less; a stage reads it
        return
    refuse_missing_sentencepiece(repo.repo_id, names, config, parse_tokenizer_beginning(head))


def _check_hub_source_gguf(access: HubAccess, repo: HubRepo, name: str, size_bytes: int) -> None:
    """Refuse a GGUF that is not a model, by the first of its metadata; its name may not tell."""
    try:
        head = read_hub_file(access, repo, name, _GGUF_HEAD_BYTES)
        metadata, n_tensors = read_gguf_beginning(head, name)
    except (QuantyardError, GgufError):  # the plan says less; a stage reads the whole header
        return
    if n_tensors or len(head) == size_bytes:  # of a vocabulary alone, the keys that tell may come later
        refuse_other_gguf(f"{name} of {repo.repo_id}", name, metadata, n_tensors)


def _hub_source_gguf(
    access: HubAccess, repo: HubRepo, chosen: Selection
) -> tuple[GgufHeader | None, ModelLayers | None]:
    """The header of a GGUF with all its parts, and the layers that take memory; None where the Hub does not give them,
    so that the plan is rougher.
    """
    ggufs = (file for file in chosen.files if file.path.endswith(".gguf"))
    parts = sorted(ggufs, key=lambda file: file.path != chosen.gguf_file)  # the first one first
    try:
        found = [_hub_source_gguf_part(access, repo, file) for file in parts]
    except (QuantyardError, GgufError, OSError):
        return None, None
    first, layers = found[0]
    tensors = tuple(tensor for header, _ in found for tensor in header.tensors)
    paths = tuple(path for header, _ in found for path in header.paths)
    return replace(first, tensors=tensors, file_size=sum(f.size_bytes for f in parts), paths=paths), layers


def _hub_source_gguf_part(access: HubAccess, repo: HubRepo, file: FileEntry) -> tuple[GgufHeader, ModelLayers | None]:
    for limit_bytes in _GGUF_HEADER_BYTES:
        head = read_hub_file(access, repo, file.path, min(limit_bytes, file.size_bytes))
        with suppress(GgufError), open_gguf_beginning(head, file.path, file.size_bytes) as header:
            return header, gguf_cache_layers(header)
    raise GgufError(f"{file.path} has no header in its first {limit_bytes} bytes")


def source_title(repo: HubRepo) -> str:
    """The title of a repo at its commit."""
    return f"{repo.repo_id} at {repo.commit[:12]}"
