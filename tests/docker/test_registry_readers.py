"""Who may pull from a repository, found out from real registries: without a login, with a password, with tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from quantyard.publish.registry.artifact import OciModel, parse_oci_reference, push_oci_model
from quantyard.publish.registry.login import RegistryCredentials, registry_docker_login
from quantyard.publish.registry.readers import registry_readers
from tests.docker.oci_model import gguf_model, needs, silent
from tests.docker.registry import docker_config, guarded_registry, registry, registry_program, tls_certificate
from tests.docker.token_service import token_service

VISITOR = RegistryCredentials()
Started = Callable[[str], str]  # kind of registry → its address


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OciModel:
    """A small one: what is in it does not matter."""
    made = gguf_model(tmp_path_factory.mktemp("model"))
    return replace(made, parts=made.licences)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    needs(registry_program(), "docker-registry")
    with ExitStack() as running:

        def started(kind: str) -> str:
            if kind == "open":
                return running.enter_context(registry(tmp_path)).address
            if kind == "tokens":
                auth = running.enter_context(token_service(tmp_path, "public/"))
                monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
                return running.enter_context(guarded_registry(tmp_path, auth=auth))
            tls = ""
            if kind == "password and TLS":
                certificate = tls_certificate(tmp_path, "IP:127.0.0.1")
                monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
                tls = f", tls: {{certificate: {certificate}, key: {tmp_path}/key.pem}}"
            return running.enter_context(guarded_registry(tmp_path, tls=tls))

        yield started


@pytest.mark.parametrize(("kind", "repository", "new", "pushed"), [
    ("open", "team/lagoon", "anybody", "anybody"),
    ("password", "team/lagoon", "members", "members"),
    ("password and TLS", "team/lagoon", "members", "members"),
    ("tokens", "public/lagoon", "anybody", "anybody"),
    ("tokens", "team/lagoon", "unknown", "members"),
])  # fmt: skip
def test_who_may_pull_is_found_out_before_and_after_the_first_push(
    start: Started, kind: str, repository: str, new: str, pushed: str, model: OciModel, tmp_path: Path
) -> None:
    address = start(kind)
    reference = parse_oci_reference(f"{address}/{repository}")
    login = registry_docker_login(address, docker_config(tmp_path, address))
    assert registry_readers(reference, login).who == new
    push_oci_model(reference, model, login, silent)
    assert registry_readers(reference, login).who == pushed
    as_visitor = "unknown" if kind == "tokens" and pushed == "members" else pushed  # hidden, or not there
    assert registry_readers(reference, VISITOR).who == as_visitor


def test_a_registry_that_does_not_answer_leaves_it_unknown() -> None:
    found = registry_readers(parse_oci_reference("127.0.0.1:9/team/lagoon"), VISITOR)
    assert found.who == "unknown" and "cannot be reached" in found.why
