"""A model of Ollama's store on this machine.

`manifests/<host>/<namespace>/<name>/<tag>` is JSON, a manifest of an OCI image; it names `blobs/sha256-<hex>`: the
GGUF, the template, the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantyard.errors import BadSource
from quantyard.files.own_files import kind_of_path, read_named_file
from quantyard.formats.names import shown_name
from quantyard.formats.strict_json import load_json
from quantyard.protocol.foreign_findings import ForeignFinding, foreign_finding
from quantyard.sources.local_source import local_gguf_source
from quantyard.sources.source import Source
from quantyard.store.hash_cache import HashCache

OLLAMA: Final = "ollama:"
_HOST: Final = "registry.ollama.ai"
_NAME: Final = re.compile(r"(?:(?:(?P<host>[\w.-]+)/)?(?P<space>[\w-]+)/)?(?P<name>[\w.-]+)(?::(?P<tag>[\w.-]+))?")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LAYER: Final = "application/vnd.ollama.image."
_MAX_MANIFEST_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class OllamaModel:
    """The GGUF of a model in Ollama's store, its name in messages, and what the manifest tells of it."""

    file: str
    source: Source
    findings: tuple[ForeignFinding, ...]


def ollama_source(typed: str, store: Path, hashes: HashCache) -> OllamaModel:
    """The model that `ollama:[host/][namespace/]name[:tag]` names.

    Raises:
        BadSource: it is not a name, or not in the store, or its blob is missing, damaged or not a model.
    """
    path = _ollama_manifest_path(typed, store)
    layers = list(_ollama_layers(path))
    models = [digest for kind, digest in layers if kind == "model"]
    if len(models) != 1:
        message = f"{typed} has {len(models)} model layers in Ollama's store, and one is needed: {path}."
        raise BadSource(message, f"Pull it again: ollama pull {typed.removeprefix(OLLAMA)}")
    blob = store / "blobs" / f"sha256-{models[0]}"
    if kind_of_path(blob) != "file":
        raise BadSource(f"The blob of {typed} is missing: {blob}.", _ollama_pull_hint(typed))
    source = local_gguf_source(blob, hashes)
    if source.files[0].sha256 != models[0]:
        message = f"The blob of {typed} is damaged: its content does not have the hash in its name, {blob.name}."
        raise BadSource(message, f"Remove it (rm {blob}). {_ollama_pull_hint(typed)}")
    return OllamaModel(typed.removeprefix(OLLAMA), source, tuple(_ollama_findings([kind for kind, _ in layers])))


def _ollama_pull_hint(typed: str) -> str:
    return f"Pull it again: ollama pull {typed.removeprefix(OLLAMA)}"


def _ollama_manifest_path(typed: str, store: Path) -> Path:
    found = _NAME.fullmatch(typed.removeprefix(OLLAMA))
    if found is None or any(part and part.startswith(".") for part in found.groups()):
        raise BadSource(f"{shown_name(typed)} is not a model of Ollama.", "Write it like this: ollama:smollm2:135m")
    folder = store / "manifests" / (found["host"] or _HOST) / (found["space"] or "library") / found["name"]
    path = folder / (found["tag"] or "latest")
    if kind_of_path(path) != "file":
        name = typed.removeprefix(OLLAMA)
        hint = f"Pull it: ollama pull {name}; or name the store's folder: OLLAMA_MODELS=/path/to/models"
        raise BadSource(f"{typed} is not in Ollama's store, {store}.", hint)
    return path


def _ollama_layers(path: Path) -> Iterator[tuple[str, str]]:
    """Kind and SHA-256 of each layer."""
    try:
        manifest = load_json(read_named_file(path, _MAX_MANIFEST_BYTES), _MAX_MANIFEST_BYTES)
        layers: Sequence[Mapping[str, Any]] = manifest["layers"]
        for layer in layers:
            digest = _DIGEST.fullmatch(layer["digest"])
            if digest is None:
                raise ValueError(f"{shown_name(str(layer['digest']))} is not a digest")
            yield str(layer["mediaType"]).removeprefix(_LAYER), digest[1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSource(f"{path} is not a manifest of Ollama: {error}.", "Pull the model again: ollama pull") from error


def _ollama_findings(kinds: Sequence[str]) -> Iterator[ForeignFinding]:
    if "template" in kinds:
        what = "Ollama serves it with a template of its own, in another layer; the file's own one is looked at here."
        yield foreign_finding("served-template", what)
    if "adapter" in kinds:
        what = "Ollama adds a LoRA adapter of another layer when it serves the file; it is measured without it."
        yield foreign_finding("adapter-beside", what)
