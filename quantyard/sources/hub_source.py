"""Resolves a MODEL of the Hub, by what its small files and the headers of its weights tell."""

from __future__ import annotations

from quantyard.errors import QuantyardError
from quantyard.formats.file_kinds import HEAD_BYTES
from quantyard.formats.gguf import GgufError, read_gguf_beginning
from quantyard.formats.safetensors import MAX_INDEX_BYTES
from quantyard.hub.client import (
    HubAccess,
    HubRepo,
    hub_tensor_shapes,
    parse_hub_repo_id,
    read_hub_config,
    read_hub_file,
    read_hub_files,
    resolve_hub_repo,
)
from quantyard.hub.files import Selection, select_hub_files
from quantyard.sources.chat_template import base_model_notes, source_chat_template
from quantyard.sources.gguf_file import refuse_other_gguf
from quantyard.sources.quantized_source import read_source_weights, source_dtypes
from quantyard.sources.side_files import parse_side_json, refuse_missing_tokenizer, refuse_spoiled_weights
from quantyard.sources.source import Source
from quantyard.sources.tensor_faults import refuse_faulty_tensors, unwrapped_tensors
from quantyard.store.artifact import ModelId

_GGUF_HEAD_BYTES = 64 * 2**10  # what a GGUF is stands before its vocabulary
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
    read = lambda name: read_hub_file(access, repo, name, min(sizes[name], MAX_INDEX_BYTES))  # noqa: E731
    chosen = select_hub_files(repo.repo_id, repo.files, read, allow_pickle=allow_pickle, gguf_file=gguf_file)
    org, name = repo.repo_id.split("/", 1)
    is_hf = chosen.kind == "huggingface"
    config = read_hub_config(access, repo) if is_hf else {}
    chats = source_chat_template({file.path for file in chosen.files}, read) if is_hf else None
    found, renamed = unwrapped_tensors(hub_tensor_shapes(access, repo, chosen.files) if is_hf else None)
    if chosen.gguf_file:
        _check_hub_gguf(access, repo, chosen.gguf_file, sizes[chosen.gguf_file])
    held = read_source_weights(config, found)
    if is_hf:
        _check_hub_files(access, repo, chosen)
        refuse_missing_tokenizer(repo.repo_id, [file.path for file in chosen.files], config)
        refuse_faulty_tensors(repo.repo_id, held.config, held.tensors or ())
    notes = (note for note in (chosen.note, renamed, *held.notes) if note and is_hf)
    dtypes = source_dtypes(held.tensors) if held.quantization and held.tensors else repo.dtypes
    return Source(
        model=ModelId(org, name, repo.commit), kind=chosen.kind, title=source_title(repo), files=chosen.files,
        repo_id=repo.repo_id, revision=revision or "main", license=repo.license, gguf_file=chosen.gguf_file,
        dtypes=dtypes, tensors=held.tensors, config=held.config, card=repo.card, has_chat_template=chats,
        quantization=held.quantization, base_model=repo.base_model,
        notes=(*notes, *base_model_notes(chats, config)),
    )


def _check_hub_files(access: HubAccess, repo: HubRepo, chosen: Selection) -> None:
    """Refuse small files of the repo that are not what their names say, before the large ones are downloaded."""
    small = [f.path for f in chosen.files if f.path.endswith(".json") and f.size_bytes <= _JSON_BYTES]
    for name, text in read_hub_files(access, repo, small).items():
        if not name.endswith(".index.json"):
            parse_side_json(repo.repo_id, name, text)
    for file in chosen.files:
        if file.path.endswith(".safetensors") and file.size_bytes < HEAD_BYTES:
            head = read_hub_files(access, repo, [file.path]).get(file.path, b"-")
            refuse_spoiled_weights(repo.repo_id, file.path, head)


def _check_hub_gguf(access: HubAccess, repo: HubRepo, name: str, size_bytes: int) -> None:
    """Refuse a GGUF that is not a model, by the first of its metadata; its name may not tell."""
    try:
        head = read_hub_file(access, repo, name, _GGUF_HEAD_BYTES)
        metadata, n_tensors = read_gguf_beginning(head, name)
    except (QuantyardError, GgufError):  # the plan says less; a stage reads the whole header
        return
    if n_tensors or len(head) == size_bytes:  # of a vocabulary alone, the keys that tell may come later
        refuse_other_gguf(f"{name} of {repo.repo_id}", name, metadata, n_tensors)


def source_title(repo: HubRepo) -> str:
    """The title of a repo at its commit."""
    return f"{repo.repo_id} at {repo.commit[:12]}"
