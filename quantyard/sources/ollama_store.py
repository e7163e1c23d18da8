"""A model of Ollama's store on this machine, or of a store that `compare` has filled from Ollama's registry.

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
# What names a model of the registry in place of the store; a host of its own may follow the first.
OLLAMA_REGISTRY: Final = ("ollama://", "ollama.com/", "registry.ollama.ai/")
_HOST: Final = "registry.ollama.ai"
_NAME: Final = re.compile(
    r"(?:(?:(?P<host>[\w.-]+(?::\d{1,5})?)/)?(?P<space>[\w.-]+)/)?(?P<name>[\w.-]+)(?::(?P<tag>[\w.-]+))?"
)
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_LAYER: Final = "application/vnd.ollama.image."
_MAX_MANIFEST_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class OllamaName:
    """A model's name, whole: registry.ollama.ai/library/smollm2:135m."""

    host: str
    space: str
    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"

    @property
    def repository(self) -> str:
        """Its repository in the registry."""
        return f"{self.space}/{self.name}"

    @property
    def manifest(self) -> Path:
        """Its manifest in a store."""
        return Path("manifests", self.host, self.space, self.name, self.tag)


@dataclass(frozen=True)
class OllamaLayer:
    """One layer of a model: `model`, `template`, `adapter` …"""

    kind: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class OllamaModel:
    """The GGUF of a model in Ollama's store, its name in messages, and what the manifest tells of it."""

    file: str
    source: Source
    findings: tuple[ForeignFinding, ...]


def ollama_source(typed: str, store: Path, hashes: HashCache) -> OllamaModel:
    """The model of the store that `ollama:[host/][namespace/]name[:tag]` names.

    Raises:
        BadSource: it is not a name, or not in the store, or its blob is missing, damaged or not a model.
    """
    path = _ollama_manifest_path(typed, store)
    try:
        layers = ollama_layers(read_named_file(path, _MAX_MANIFEST_BYTES), str(path))
    except OSError as error:
        raise _no_ollama_manifest(str(path), error) from error
    models = [layer.sha256 for layer in layers if layer.kind == "model"]
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
    return OllamaModel(typed.removeprefix(OLLAMA), source, tuple(_ollama_findings([layer.kind for layer in layers])))


def _ollama_pull_hint(typed: str) -> str:
    return f"Pull it again: ollama pull {typed.removeprefix(OLLAMA)}"


def is_ollama_registry_source(typed: str) -> bool:
    """Whether a place names a model of Ollama's registry: `ollama://smollm2:135m`, `ollama.com/library/smollm2`."""
    return typed.startswith(OLLAMA_REGISTRY)


def parse_ollama_name(typed: str) -> OllamaName:
    """The name that `[host/][namespace/]name[:tag]` stands for, in a store (`ollama:`) or in the registry.

    Raises:
        BadSource: it is not a name.
    """
    bare = typed.removeprefix("ollama://").removeprefix(OLLAMA).removeprefix("ollama.com/")
    found = _NAME.fullmatch(bare)
    if found is None or any(part and part.startswith(".") for part in found.groups()):
        raise BadSource(f"{shown_name(typed)} is not a model of Ollama.", "Write it like this: ollama:smollm2:135m")
    return OllamaName(found["host"] or _HOST, found["space"] or "library", found["name"], found["tag"] or "latest")


def _ollama_manifest_path(typed: str, store: Path) -> Path:
    path = store / parse_ollama_name(typed).manifest
    if kind_of_path(path) != "file":
        name = typed.removeprefix(OLLAMA)
        hint = f"Pull it: ollama pull {name}; name the store's folder: OLLAMA_MODELS=/path/to/models; or take it from "
        raise BadSource(f"{typed} is not in Ollama's store, {store}.", f"{hint}the registry: REPOS=ollama://{name}")
    return path


def ollama_layers(manifest: bytes, where: str) -> tuple[OllamaLayer, ...]:
    """The layers of a manifest; `where` it was read, for messages.

    Raises:
        BadSource: it is not a manifest of Ollama.
    """
    try:
        layers: Sequence[Mapping[str, Any]] = load_json(manifest, _MAX_MANIFEST_BYTES)["layers"]
        return tuple(_ollama_layer(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_ollama_manifest(where, error) from error


def _ollama_layer(layer: Mapping[str, Any]) -> OllamaLayer:
    digest, size = _DIGEST.fullmatch(layer["digest"]), layer.get("size", 0)
    if digest is None:
        raise ValueError(f"{shown_name(str(layer['digest']))} is not a digest")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"{shown_name(str(size))} is not a size")
    return OllamaLayer(str(layer["mediaType"]).removeprefix(_LAYER), digest[1], size)


def _no_ollama_manifest(where: str, error: Exception) -> BadSource:
    return BadSource(f"{where} is not a manifest of Ollama: {error}.", "Pull the model again: ollama pull")


def _ollama_findings(kinds: Sequence[str]) -> Iterator[ForeignFinding]:
    if "template" in kinds:
        what = "Ollama serves it with a template of its own, in another layer; the file's own one is looked at here."
        yield foreign_finding("served-template", what)
    if "adapter" in kinds:
        what = "Ollama adds a LoRA adapter of another layer when it serves the file; it is measured without it."
        yield foreign_finding("adapter-beside", what)
