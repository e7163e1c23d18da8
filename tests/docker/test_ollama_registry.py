"""A model in a real registry, Debian's docker-registry, as Ollama's registry has it, is pulled by its name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import requests

from quantyard.hub.client import HubAccess
from quantyard.publish.registry.ollama import pull_ollama_model
from quantyard.requests import ForeignRequest
from quantyard.sources.foreign_files import find_foreign_files
from quantyard.sources.ollama_store import OllamaName
from quantyard.store.hash_cache import HashCache
from tests.docker.oci_model import needs
from tests.docker.registry import registry, registry_program
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf

MODEL = gguf(SMALL_METADATA, [TensorSpec("token_embd.weight", (32, 4))])
_DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def _pushed(address: str, repository: str, content: bytes, kind: str) -> dict[str, object]:
    """A blob of the registry, as a layer of a manifest."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    begun = requests.post(f"http://{address}/v2/{repository}/blobs/uploads/", timeout=20)
    sent = requests.put(begun.headers["Location"], params={"digest": digest}, data=content, timeout=20)
    assert sent.status_code == 201, sent.text
    return {"mediaType": kind, "digest": digest, "size": len(content)}


def _push(address: str, repository: str, tag: str) -> None:
    layers = {"model": MODEL, "template": b"{{ .Prompt }}", "params": b"{}", "license": b"MIT"}
    manifest = {
        "schemaVersion": 2, "mediaType": _DOCKER,
        "config": _pushed(address, repository, b"{}", "application/vnd.docker.container.image.v1+json"),
        "layers": [_pushed(address, repository, content, f"application/vnd.ollama.image.{kind}")
                   for kind, content in layers.items()],
    }  # fmt: skip
    sent = requests.put(
        f"http://{address}/v2/{repository}/manifests/{tag}", data=json.dumps(manifest), timeout=20,
        headers={"Content-Type": _DOCKER},
    )
    assert sent.status_code == 201, sent.text


def test_a_model_of_a_registry_is_pulled_by_its_name(tmp_path: Path) -> None:
    needs(registry_program(), "docker-registry")

    def pull(name: OllamaName) -> Path:
        pull_ollama_model(name, tmp_path / "store", tmp_path / "config.json")
        return tmp_path / "store"

    with registry(tmp_path) as started:
        _push(started.address, "library/tiny", "135m-q8_0")
        asked = ForeignRequest((f"ollama://{started.address}/library/tiny:135m-q8_0",), ("all",), tmp_path / "none")
        (file,) = find_foreign_files(asked, HubAccess(None), HashCache(tmp_path / "hashes.json"), pull).files
    assert file.source.files[0].sha256 == hashlib.sha256(MODEL).hexdigest() and file.label == "q8_0@ollama"
    assert [finding.kind for finding in file.findings] == ["served-template"]
