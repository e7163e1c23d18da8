"""Signed and verified by a real cosign, in a real registry."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from quantyard.errors import BadRequest, EngineError
from quantyard.publish.registry.artifact import OciModel, OciReference, push_oci_model
from quantyard.publish.registry.signing import check_signing_key, push_signed_oci_model, sign_oci_artifact
from tests.docker.oci_model import at, gguf_model, needs, silent
from tests.docker.registry import Registry, registry, registry_program

NAME = "team/lagoon"
PASSWORD = "of the key"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    needs(registry_program(), "docker-registry")
    with registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OciModel:
    return gguf_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cosign.key and cosign.pub."""
    if shutil.which("cosign") is None:
        pytest.skip("no cosign here: apt-get install cosign (Debian 13), brew install cosign")
    folder = tmp_path_factory.mktemp("keys")
    env = os.environ | {"COSIGN_PASSWORD": PASSWORD}
    subprocess.run(["cosign", "generate-key-pair"], cwd=folder, env=env, check=True, capture_output=True)
    return folder


@pytest.fixture
def key(keys: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COSIGN_PASSWORD", PASSWORD)
    return keys / "cosign.key"


def _verified(keys: Path, name: str) -> bool:
    argv = ["cosign", "verify", "--key", str(keys / "cosign.pub"), "--insecure-ignore-tlog=true", name]
    return subprocess.run(argv, check=False, capture_output=True).returncode == 0


def test_a_signature_verifies_for_what_was_signed_and_for_nothing_else(
    store: Registry, model: OciModel, keys: Path, key: Path
) -> None:
    reference = replace(at(store, "team/signed"), tag="v1")
    digest = push_signed_oci_model(reference, model, None, key, silent)
    tagged = f"{reference.registry}/{reference.repository}:v1"
    assert _verified(keys, reference.at(digest)) and _verified(keys, tagged)
    other = push_oci_model(reference, replace(model, annotations={"quantyard.ppl": "1"}), None, silent)
    assert not _verified(keys, tagged), "the tag was moved to another artifact, and still verifies"
    assert not _verified(keys, reference.at(other)) and _verified(keys, reference.at(digest))


def test_a_key_is_tried_before_anything_is_pushed(
    store: Registry, model: OciModel, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_signing_key(key)
    with pytest.raises(BadRequest, match="cannot be read: No such file") as caught:
        check_signing_key(tmp_path / "none.key")
    assert "cosign generate-key-pair" in caught.value.hint
    (tmp_path / "broken.key").write_text("no key")
    with pytest.raises(BadRequest, match="cosign cannot open the key"):
        push_signed_oci_model(at(store, "team/unsigned"), model, None, tmp_path / "broken.key", silent)
    asked = requests.get(f"http://{store.address}/v2/team/unsigned/tags/list", timeout=20)
    assert asked.status_code == 404, "something was pushed"
    monkeypatch.setenv("COSIGN_PASSWORD", "another")
    with pytest.raises(BadRequest, match="decryption failed") as caught:
        check_signing_key(key)
    assert "COSIGN_PASSWORD" in caught.value.hint


def test_a_password_that_is_not_set_is_never_asked_for(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COSIGN_PASSWORD")
    with pytest.raises(BadRequest, match="cosign cannot open the key"):
        check_signing_key(key)


def test_without_cosign_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.key").write_text("…")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="cosign is not installed") as caught:
        check_signing_key(tmp_path / "some.key")
    assert "apt-get install cosign" in caught.value.hint


def test_a_signature_that_cannot_be_left_is_an_error_that_says_what_is_published(key: Path) -> None:
    nobody = OciReference("127.0.0.1:9", NAME)
    with pytest.raises(EngineError, match="is published, but not signed") as caught:
        sign_oci_artifact(nobody, "sha256:" + "0" * 64, key)
    assert f"cosign sign --key {key}" in caught.value.hint
