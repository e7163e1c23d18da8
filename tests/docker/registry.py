"""A real registry on the loopback interface: the program of Debian's package docker-registry."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.docker.server import wait_for

_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.oci.image.index.v1+json"
)

_HTPASSWD = "me:$2b$04$w7/nCN4YbLMTbOyQjFYPEOstQuJ/kLKyP3KS3dFJUr8a3fk0Fwh.2\n"  # the word "secret", by bcrypt
_BASIC = "bWU6c2VjcmV0"  # me:secret


class Registry:
    """One running registry; asked over HTTP, with no engine between."""

    def __init__(self, address: str, log: Path) -> None:
        self.address = address
        self._log = log

    def manifest(self, repository: str, tag: str) -> dict[str, Any]:
        answer = requests.get(
            f"http://{self.address}/v2/{repository}/manifests/{tag}", headers={"Accept": _TYPES}, timeout=20
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def blob(self, repository: str, digest: str) -> bytes:
        answer = requests.get(f"http://{self.address}/v2/{repository}/blobs/{digest}", timeout=60)
        assert answer.status_code == 200
        return answer.content

    def uploaded(self, digest: str) -> int:
        """How often somebody sent the bytes of this blob."""
        hexadecimal = digest.partition(":")[2]
        sent = [line for line in self._log.read_text().splitlines() if '"PUT /v2/' in line and hexadecimal in line]
        return len(sent)


def registry_program() -> str | None:
    return shutil.which("docker-registry")


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """A registry whose data and log are in `folder`; stopped at the end."""
    program = registry_program()
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config, log = folder / "registry.yml", folder / "registry.log"
    config.write_text(
        f"version: 0.1\nlog: {{accesslog: {{disabled: false}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    with log.open("w") as output:
        process = subprocess.Popen([program, "serve", str(config)], stdout=output, stderr=output)
        try:
            wait_for(lambda: _answers(address), 20, log.read_text)
            yield Registry(address, log)
        finally:
            process.terminate()
            process.wait(timeout=20)


def _answers(address: str) -> bool:
    try:
        return requests.get(f"http://{address}/v2/", timeout=2).status_code == 200
    except requests.exceptions.RequestException:
        return False


@contextmanager
def guarded_registry(folder: Path, host: str = "127.0.0.1", tls: str = "", auth: str = "") -> Iterator[str]:
    """A registry with a password, or with another `auth`, and with TLS if it is given a configuration; its address."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        address = f"{host}:{probe.getsockname()[1]}"
    (folder / "htpasswd").write_text(_HTPASSWD)
    config, log = folder / "registry.yml", folder / "registry.log"
    auth = auth or f"htpasswd: {{realm: here, path: {folder}/htpasswd}}"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"auth: {{{auth}}}\nhttp: {{addr: '{address}'{tls}}}\n"
    )
    with log.open("w") as output:
        process = subprocess.Popen([str(registry_program()), "serve", str(config)], stdout=output, stderr=output)
        try:
            wait_for(lambda: "listening on" in log.read_text(), 20, log.read_text)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=20)


def docker_config(folder: Path, address: str) -> Path:
    """What `docker login` writes for the user of `guarded_registry`."""
    path = folder / "config.json"
    path.write_text(json.dumps({"auths": {address: {"auth": _BASIC}}}))
    return path


def tls_certificate(folder: Path, names: str) -> Path:
    """A self-signed certificate for these names, beside its key (key.pem)."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=registry",
         "-addext", f"subjectAltName={names}", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem"
