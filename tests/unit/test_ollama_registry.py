"""A model of Ollama's registry is pulled into a store: led to its storage, resumed, and never taken unchecked."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest

from quantyard.errors import BadSource, FileTooLarge
from quantyard.hub.client import HubAccess
from quantyard.publish.registry import client
from quantyard.publish.registry.errors import OciError, RegistryRefused, RegistryUnreachable
from quantyard.publish.registry.ollama import pull_ollama_model
from quantyard.requests import ForeignRequest
from quantyard.sources.foreign_files import ForeignFiles, find_foreign_files
from quantyard.sources.ollama_store import OllamaName, parse_ollama_name
from quantyard.store.hash_cache import HashCache
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.unit.oci_server import SECRET, USER, OciServer, oci_server

MODEL = gguf(SMALL_METADATA, [TensorSpec("token_embd.weight", (32, 4))])
DIGEST = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"


def offer(
    server: OciServer, content: bytes = MODEL, size: int | None = None,
    kinds: tuple[str, ...] = ("model", "template", "license"),
) -> OllamaName:  # fmt: skip
    """A manifest as Ollama's registry has it."""
    server.blobs[DIGEST] = content
    server.manifests["q4"] = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": DIGEST, "size": 1},
        "layers": [{"mediaType": f"application/vnd.ollama.image.{kind}", "size": len(MODEL) if size is None else size,
                    "digest": DIGEST if kind == "model" else f"sha256:{kind.encode().hex():0>64}"} for kind in kinds],
    }).encode()  # fmt: skip
    return parse_ollama_name(f"ollama://{server.address}/team/name:q4")


def blob(store: Path) -> Path:
    return store / "blobs" / DIGEST.replace(":", "-")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def test_the_model_layer_alone_is_downloaded_once(tmp_path: Path, config: Path) -> None:
    with oci_server() as server:
        name = offer(server)
        for _ in range(2):
            pull_ollama_model(name, tmp_path, config)
        assert server.asked("GET", "/blobs/") == 1
    assert blob(tmp_path).read_bytes() == MODEL and len(list((tmp_path / "blobs").iterdir())) == 1
    assert (tmp_path / name.manifest).read_bytes() == server.manifests["q4"]


def test_a_registry_that_leads_to_its_storage_and_asks_for_a_login_is_followed_without_it(
    tmp_path: Path, config: Path
) -> None:
    with oci_server(auth="bearer") as server, oci_server() as storage:
        login = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
        config.write_text(json.dumps({"auths": {server.address: {"auth": login}}}))
        name = offer(server)
        storage.blobs, server.storage = server.blobs, storage.address
        pull_ollama_model(name, tmp_path, config)
    assert blob(tmp_path).read_bytes() == MODEL
    assert [given for _, _, given in storage.log] == [""], "the storage gets no token"


def test_a_download_that_breaks_off_goes_on_where_it_was(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.0)
    with oci_server(breaks_after=[100, 50]) as server:
        pull_ollama_model(offer(server), tmp_path, config)
        assert server.asked("GET", "/blobs/") == 3
        assert blob(tmp_path).read_bytes() == MODEL
        blob(tmp_path).unlink()
        server.breaks_after = [10] * 4
        with pytest.raises(RegistryUnreachable):
            pull_ollama_model(offer(server), tmp_path, config)
        pull_ollama_model(offer(server), tmp_path, config)  # the next run goes on
    assert blob(tmp_path).read_bytes() == MODEL


@pytest.mark.parametrize(("content", "size", "error", "says"), [
    (MODEL[:-1] + b"x", None, RegistryRefused, "is not sha256:"), (MODEL + b"x", None, RegistryRefused, "sends more"),
    (MODEL, 1 << 60, FileTooLarge, "are free"), (MODEL, -1, BadSource, "is not a size"),
    (MODEL, 10, RegistryRefused, "sends more"), (MODEL, 0, RegistryRefused, "is not sha256:"),
])  # fmt: skip
def test_what_is_not_what_the_manifest_says_is_refused(
    tmp_path: Path, config: Path, content: bytes, size: int | None, error: type[Exception], says: str
) -> None:
    with oci_server() as server, pytest.raises(error, match=says):
        pull_ollama_model(offer(server, content, size), tmp_path, config)
    assert not blob(tmp_path).exists() and not list(tmp_path.rglob("q4"))


@pytest.mark.parametrize("kinds", [(), ("template",), ("model", "model")])
def test_a_manifest_without_its_one_model_layer_downloads_nothing(
    tmp_path: Path, config: Path, kinds: tuple[str, ...]
) -> None:
    with oci_server() as server:
        name = offer(server, kinds=kinds)
        with pytest.raises(BadSource, match="model layers"):
            pull_ollama_model(name, tmp_path, config)
        assert server.asked("GET", "/blobs/") == 0


def test_a_registry_without_the_model_says_so(tmp_path: Path, config: Path) -> None:
    with oci_server() as server, pytest.raises(OciError, match="does not know team/none"):
        pull_ollama_model(parse_ollama_name(f"ollama://{server.address}/team/none"), tmp_path, config)


def found(tmp_path: Path, *places: str) -> ForeignFiles:
    def pull(name: OllamaName) -> Path:
        pull_ollama_model(name, tmp_path / "pulled", tmp_path / "config.json")
        return tmp_path / "pulled"

    asked = ForeignRequest(places, ("all",), tmp_path / "ollama")
    return find_foreign_files(asked, HubAccess(None), HashCache(tmp_path / "hashes.json"), pull)


def test_a_place_in_the_registry_is_a_file_of_others_and_one_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    with oci_server() as server:
        name = offer(server)
        places = [f"ollama://{server.address}/team/{each}" for each in ("name:other", "name:q4", "name:none")]
        files = found(tmp_path, *places)
    (file,) = files.files
    assert file.label == "q4@ollama" and file.file == str(name) and file.place == places[1]
    assert [one.kind for one in file.findings] == ["served-template"]
    assert file.source.local is not None and file.source.files[0].sha256 == DIGEST.removeprefix("sha256:")
    assert set(files.failures) == {"name-other@ollama", "name-none@ollama"}


@pytest.mark.parametrize(("typed", "whole"), [
    ("ollama://smollm2:135m", "registry.ollama.ai/library/smollm2:135m"),
    ("ollama.com/library/smollm2", "registry.ollama.ai/library/smollm2:latest"),
    ("registry.ollama.ai/me/name:q4_K_M", "registry.ollama.ai/me/name:q4_K_M"),
    ("ollama://localhost:5000/team/name:tag", "localhost:5000/team/name:tag"),
    ("ollama:me/name", "registry.ollama.ai/me/name:latest"),
])  # fmt: skip
def test_a_name_is_completed_as_ollama_does(typed: str, whole: str) -> None:
    assert str(parse_ollama_name(typed)) == whole


@pytest.mark.parametrize("typed", ["ollama://", "ollama://a/b/c/d", "ollama://../../x", "ollama://a b", "ollama.com/"])
def test_what_is_not_a_name_is_refused(typed: str) -> None:
    with pytest.raises(BadSource, match="is not a model of Ollama"):
        parse_ollama_name(typed)
