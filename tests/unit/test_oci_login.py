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
from quantyard.publish.registry import login
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


def test_without_a_login_one_is_a_visitor(tmp_path: Path) -> None:
    for config in (
        tmp_path / "none.json", _config(tmp_path, auths={"registry.example": {}}),
        _config(tmp_path, auths={"other.example": _auth("me:x")}),
    ):
        assert not registry_docker_login("registry.example", config)


def test_a_line_end_after_a_secret_is_no_part_of_it(tmp_path: Path, helper: Helper) -> None:
    config = _config(tmp_path, auths={
        "registry.example": _auth("me:s3\n"), "token.example": {"identitytoken": "tok\r\n"},
    })  # fmt: skip
    assert registry_docker_login("registry.example", config) == RegistryCredentials("me", "s3")
    assert registry_docker_login("token.example", config) == RegistryCredentials(identity_token="tok")
    helper("safe", 'echo \'{"Username":"me","Secret":"s3\\\\n"}\'')
    found = registry_docker_login("registry.example", _config(tmp_path, credsStore="safe"))
    assert (found.username, found.secret) == ("me", "s3")


def test_a_credential_helper_is_asked_by_the_registrys_name(tmp_path: Path, helper: Helper) -> None:
    helper("safe", 'read name; test "$name" = registry.example || exit 1; echo \'{"Username":"me","Secret":"s3"}\'')
    assert registry_docker_login(
        "registry.example", _config(tmp_path, credsStore="safe", auths={})
    ) == RegistryCredentials("me", "s3")
    assert registry_docker_login("other.example", _config(tmp_path, credsStore="safe")) == RegistryCredentials()
    one = _config(tmp_path, credHelpers={"registry.example": "safe"}, auths={"other.example": _auth("you:x")})
    assert registry_docker_login("registry.example", one) == RegistryCredentials("me", "s3")
    assert registry_docker_login("other.example", one) == RegistryCredentials("you", "x")


def test_a_helpers_identity_token_is_one(tmp_path: Path, helper: Helper) -> None:
    helper("safe", 'echo \'{"Username":"<token>","Secret":"tok"}\'')
    assert registry_docker_login("registry.example", _config(tmp_path, credsStore="safe")) == RegistryCredentials(
        identity_token="tok"
    )


_FAULTS = {
    "missing": (None, "is not installed"), "no JSON": ("echo no json", "does not work"),
    "a list": ("echo []", "does not work"), "nothing": ("exit 0", "does not work"),
    "hangs": ("exec sleep 9", "did not answer within 0.2 s"),
}  # fmt: skip


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_helper_that_is_missing_or_broken_is_passed_over_and_remembered(
    fault: str, tmp_path: Path, helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, says = _FAULTS[fault]
    if script:
        helper("gone", script)
    monkeypatch.setattr(login, "_HELPER_TIMEOUT_S", 0.2 if fault == "hangs" else 30)
    for named in ({"credsStore": "gone"}, {"credHelpers": {"registry.example": "gone"}}):
        visitor = registry_docker_login("registry.example", _config(tmp_path, **named))
        assert not visitor and visitor.note.startswith("docker-credential-gone") and says in visitor.note
        kept = _config(tmp_path, auths={"registry.example": _auth("me:s3")}, **named)
        assert registry_docker_login("registry.example", kept) == RegistryCredentials("me", "s3")


def test_a_helper_that_has_no_login_is_not_at_fault(tmp_path: Path, helper: Helper) -> None:
    helper("safe", "echo credentials not found in native keychain; exit 1")
    assert registry_docker_login("registry.example", _config(tmp_path, credsStore="safe")).note == ""


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
