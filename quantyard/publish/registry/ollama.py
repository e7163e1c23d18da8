"""Pulls a model of Ollama's registry, ollama.com or another, into a store as Ollama's own: manifest and model layer.

The registry speaks the protocol of container images; the GGUF is the layer of the media type
`application/vnd.ollama.image.model`. Template, parameters and licence are other layers, which are not downloaded.
Source: server/download.go, server/images.go and types/model/name.go of Ollama.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quantyard.errors import BadSource
from quantyard.files.atomic import write_file_atomically
from quantyard.publish.registry.blob import download_registry_blob
from quantyard.publish.registry.client import MANIFEST_TYPE, Registry, is_loopback_registry
from quantyard.publish.registry.login import registry_docker_login
from quantyard.sources.ollama_store import OllamaName, ollama_layers

_KINDS: Final = f"application/vnd.docker.distribution.manifest.v2+json, {MANIFEST_TYPE}"


def pull_ollama_model(name: OllamaName, store: Path, docker_config: Path) -> None:
    """Put the model into the store; what is there already is not downloaded again.

    Raises:
        BadSource: what the registry has is not a model of Ollama.
        OciError: the registry does not have it, refuses, or cannot be reached.
        FileTooLarge: there is no room for it.
    """
    with Registry(name.host, name.repository, registry_docker_login(name.host, docker_config)) as registry:
        if is_loopback_registry(name.host):  # it may have TLS or not
            registry.ping()
        content = registry.manifest(name.tag, _KINDS)
        models = [layer for layer in ollama_layers(content, str(name)) if layer.kind == "model"]
        if len(models) != 1:
            message = f"{name} has {len(models)} model layers in its registry, and one is needed."
            raise BadSource(message, "Name another model in REPOS.")
        (model,) = models
        blob = store / "blobs" / f"sha256-{model.sha256}"
        if not (blob.is_file() and blob.stat().st_size == model.size_bytes):
            download_registry_blob(registry, f"sha256:{model.sha256}", model.size_bytes, blob)
    path = store / name.manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file_atomically(path, content)
