"""Pushed to a real registry, Debian's docker-registry, and read back with plain HTTP: no engine, no client of ours."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from quantyard.protocol.runner import file_sha256
from quantyard.publish.files import kept_release_file
from quantyard.publish.registry.artifact import (
    CONFIG_TYPE,
    GGUF_TYPE,
    OciModel,
    oci_digest,
    parse_oci_reference,
    push_oci_model,
)
from quantyard.publish.registry.errors import LoginNeeded, OciError, RegistryUnreachable
from quantyard.publish.registry.login import registry_docker_login
from quantyard.publish.registry.upload import CHUNK_BYTES
from tests.docker.oci_model import at, gguf_model, needs, silent
from tests.docker.registry import Registry, docker_config, guarded_registry, registry, registry_program, tls_certificate

NAME = "team/lagoon"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    needs(registry_program(), "docker-registry")
    with registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OciModel:
    return gguf_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def digest(store: Registry, model: OciModel) -> str:
    """Pushed once."""
    return push_oci_model(at(store, NAME), model, None, silent)


def test_the_layer_is_the_gguf_itself(store: Registry, model: OciModel, digest: str) -> None:
    layer = store.manifest(NAME, "Q4_K_M")["layers"][0]
    assert layer["digest"] == f"sha256:{model.parts[0].sha256}" and layer["mediaType"] == GGUF_TYPE
    blob = store.blob(NAME, layer["digest"])
    assert blob[:4] == b"GGUF" and len(blob) == layer["size"]
    assert hashlib.sha256(blob).hexdigest() == model.parts[0].sha256


def test_the_manifest_under_the_tag_has_the_digest_that_was_foretold(
    store: Registry, model: OciModel, digest: str
) -> None:
    types = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    answer = requests.get(f"http://{store.address}/v2/{NAME}/manifests/Q4_K_M", headers=types, timeout=20)
    assert f"sha256:{hashlib.sha256(answer.content).hexdigest()}" == digest == oci_digest(model)
    assert answer.headers["Docker-Content-Digest"] == digest
    manifest = answer.json()
    assert manifest["annotations"] == dict(model.annotations) and manifest["config"]["mediaType"] == CONFIG_TYPE
    config = json.loads(store.blob(NAME, manifest["config"]["digest"]))
    assert config["config"]["quantization"] == "Q4_K_M" and config["config"]["format"] == "gguf"


def test_a_second_push_sends_no_bytes_and_gives_the_same_digest(store: Registry, model: OciModel, digest: str) -> None:
    assert push_oci_model(at(store, NAME), model, None, silent) == digest
    assert store.uploaded(f"sha256:{model.parts[0].sha256}") == 1
    other = replace(model, annotations={**model.annotations, "quantyard.gate": "failed"})
    assert push_oci_model(replace(at(store, NAME), tag="other"), other, None, silent) != digest
    assert store.uploaded(f"sha256:{model.parts[0].sha256}") == 1, "new numbers sent the model again"


def test_the_file_is_never_in_memory_as_a_whole(store: Registry, model: OciModel) -> None:
    tracemalloc.start()
    try:
        push_oci_model(at(store, "team/memory"), model, None, silent)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20 < model.parts[0].size_bytes / 4


@contextmanager
def _cutting(address: str, after_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """A way to the registry that breaks once, when it has carried so many bytes; and what each connection carried."""
    host, _, port = address.partition(":")
    carried: list[int] = []

    def carry(inside: socket.socket, outside: socket.socket, number: int) -> None:
        with suppress(OSError):
            while block := inside.recv(65536):
                carried[number] += len(block)
                if number == 0 and carried[0] > after_bytes:
                    break
                outside.sendall(block)
        for end in (inside, outside):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                inside, outside = server.accept()[0], socket.create_connection((host, int(port)))
                carried.append(0)
                threading.Thread(target=carry, args=(inside, outside, len(carried) - 1), daemon=True).start()
                threading.Thread(target=_back, args=(outside, inside), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", carried


def _back(outside: socket.socket, inside: socket.socket) -> None:
    with suppress(OSError):
        while block := outside.recv(65536):
            inside.sendall(block)


def test_a_connection_cut_in_mid_upload_is_mended(store: Registry, model: OciModel, tmp_path: Path) -> None:
    """This registry forgets what it has of a blob when a connection is cut, so all of it is sent again."""
    other = tmp_path / "other.gguf"
    other.write_bytes(model.parts[0].read() + b"0" * 4096)
    part = kept_release_file("other.gguf", other, file_sha256(other))
    with _cutting(store.address, CHUNK_BYTES // 2) as (address, carried):
        push_oci_model(parse_oci_reference(f"{address}/team/cut"), replace(model, parts=(part,)), None, silent)
    assert len(carried) > 1 and carried[0] < CHUNK_BYTES, "nothing was cut"
    assert store.blob("team/cut", f"sha256:{part.sha256}") == other.read_bytes()


def test_a_reference_that_nobody_answers_is_an_error_of_the_network(model: OciModel) -> None:
    with pytest.raises(OciError) as caught:
        push_oci_model(parse_oci_reference(f"127.0.0.1:9/{NAME}"), model, None, silent)
    assert caught.value.code == 4


# ---- logins and TLS, with a registry that asks for them ----------------------------------------------


def test_dockers_login_lets_one_push_and_without_it_nothing_is_sent(
    store: Registry, model: OciModel, tmp_path: Path
) -> None:
    with guarded_registry(tmp_path, "127.0.0.1") as address:
        reference = parse_oci_reference(f"{address}/{NAME}")
        with pytest.raises(LoginNeeded) as caught:
            push_oci_model(reference, model, None, silent)
        assert caught.value.hint == f"Type: docker login {address}" and not (tmp_path / "data").exists()
        login = registry_docker_login(address, docker_config(tmp_path, address))
        assert push_oci_model(reference, model, login, silent) == oci_digest(model)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for this machine's name, beside its key."""
    host = socket.gethostname()
    try:
        socket.gethostbyname(host)
    except OSError:
        pytest.skip(f"the machine's name, {host}, leads nowhere")
    return tls_certificate(tmp_path, f"DNS:{host}")


def test_tls_is_trusted_by_the_ca_that_is_named_and_by_no_other(
    store: Registry, model: OciModel, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = f", tls: {{certificate: {certificate}, key: {tmp_path}/key.pem}}"
    small = replace(model, parts=model.licences)
    with guarded_registry(tmp_path, socket.gethostname(), tls) as address:
        login = registry_docker_login(address, docker_config(tmp_path, address))
        with pytest.raises(RegistryUnreachable, match="certificate") as caught:
            push_oci_model(parse_oci_reference(f"{address}/{NAME}"), small, login, silent)
        assert "EXTRA_CA" in caught.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert push_oci_model(parse_oci_reference(f"{address}/{NAME}"), small, login, silent) == oci_digest(small)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_registry_with_tls_on_this_machine_is_spoken_to_with_tls(
    host: str, store: Registry, model: OciModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tls_certificate(tmp_path, "DNS:localhost,IP:127.0.0.1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # not for this machine
    small = replace(model, parts=model.licences)
    tls = f", tls: {{certificate: {certificate}, key: {tmp_path}/key.pem}}"
    with guarded_registry(tmp_path, host, tls) as address:
        reference = parse_oci_reference(f"{address}/{NAME}")
        login = registry_docker_login(address, docker_config(tmp_path, address))
        with pytest.raises(RegistryUnreachable, match="certificate") as caught:
            push_oci_model(reference, small, login, silent)
        assert "EXTRA_CA" in caught.value.hint and not (tmp_path / "data").exists()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(LoginNeeded, match="asks for a login"):
            push_oci_model(reference, small, None, silent)
        assert push_oci_model(reference, small, login, silent) == oci_digest(small)


def test_no_other_machine_is_spoken_to_without_tls(
    store: Registry, model: OciModel, tmp_path: Path, certificate: Path
) -> None:
    with guarded_registry(tmp_path, socket.gethostname()) as address:
        with pytest.raises(RegistryUnreachable) as caught:
            push_oci_model(parse_oci_reference(f"{address}/{NAME}"), model, None, silent)
        assert "plain HTTP is used for registries on this machine only" in caught.value.hint
