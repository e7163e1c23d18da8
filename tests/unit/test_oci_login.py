"""Who one is at a registry, as docker's own file and real credential helpers say it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantyard.errors import BadRequest
from quantyard.publish.registry.errors import LoginNeeded
from quantyard.publish.registry.login import RegistryCredentials, registry_docker_login

Helper = Callable[[str, str], None]


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    """Installs a credential helper, a real program."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(name: str, script: str) -> None:
        path = tmp_path / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


def _config(tmp_path: Path, **settings: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    return path


def _auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_a_login_in_dockers_file_is_found(tmp_path: Path) -> None:
    config = _config(tmp_path, auths={
        "registry.example": _auth("me:pa:ss"), "https://index.docker.io/v1/": _auth("hub:x"),
        "old.example": {"identitytoken": "tok"}, "https://url.example": _auth("u:p"),
    })  # fmt: skip
    assert registry_docker_login("registry.example", config) == RegistryCredentials("me", "pa:ss")
    assert registry_docker_login("docker.io", config) == RegistryCredentials("hub", "x")
    assert registry_docker_login("old.example", config) == RegistryCredentials(identity_token="tok")
    assert registry_docker_login("url.example", config) == RegistryCredentials("u", "p")


def test_no_login_is_none(tmp_path: Path) -> None:
    assert registry_docker_login("registry.example", tmp_path / "none.json") is None
    assert registry_docker_login("registry.example", _config(tmp_path, auths={"registry.example": {}})) is None
    assert registry_docker_login("registry.example", _config(tmp_path, auths={"other.example": _auth("me:x")})) is None


def test_a_credential_helper_is_asked_by_the_registrys_name(tmp_path: Path, helper: Helper) -> None:
    helper("safe", 'read name; test "$name" = registry.example || exit 1; echo \'{"Username":"me","Secret":"s3"}\'')
    assert registry_docker_login(
        "registry.example", _config(tmp_path, credsStore="safe", auths={})
    ) == RegistryCredentials("me", "s3")
    assert registry_docker_login("other.example", _config(tmp_path, credsStore="safe")) is None
    one = _config(tmp_path, credHelpers={"registry.example": "safe"}, auths={"other.example": _auth("you:x")})
    assert registry_docker_login("registry.example", one) == RegistryCredentials("me", "s3")
    assert registry_docker_login("other.example", one) == RegistryCredentials("you", "x")


def test_a_helpers_identity_token_is_one(tmp_path: Path, helper: Helper) -> None:
    helper("safe", 'echo \'{"Username":"<token>","Secret":"tok"}\'')
    assert registry_docker_login("registry.example", _config(tmp_path, credsStore="safe")) == RegistryCredentials(
        identity_token="tok"
    )


@pytest.mark.parametrize("script", [None, "echo no json"])
def test_a_helper_that_is_missing_or_broken_is_said(script: str | None, tmp_path: Path, helper: Helper) -> None:
    if script:
        helper("gone", script)
    with pytest.raises(LoginNeeded, match="docker-credential-gone does not answer") as caught:
        registry_docker_login("registry.example", _config(tmp_path, credsStore="gone"))
    assert "docker login registry.example" in caught.value.hint


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": []}'])
def test_a_broken_file_of_dockers_is_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BadRequest, match=r"config\.json"):
        registry_docker_login("registry.example", path)


def test_a_broken_login_is_said_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(LoginNeeded) as caught:
        registry_docker_login("registry.example", _config(tmp_path, auths={"registry.example": {"auth": "%%secret"}}))
    assert "secret" not in caught.value.message


def test_a_secret_is_in_no_traceback() -> None:
    assert "s3cret" not in repr(RegistryCredentials("me", "s3cret", "s3cret"))
