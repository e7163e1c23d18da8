"""A Hub behind a certificate of a company's own: the planner and the fetch container trust it through EXTRA_CA."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run, run_json
from tests.hub_server import HubServer

REPO = "company/tiny"
NO_CA = {"SSL_CERT_FILE": "", "REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "", "PIP_CERT": "", "EXTRA_CA": ""}


@dataclass
class TlsFront:
    """Ends TLS in front of a plain server."""

    endpoint: str
    ca: Path


def _certificate(folder: Path, address: str) -> tuple[Path, Path, Path]:
    """A new authority, and a key and certificate of this address signed by it."""
    ca_key, ca, key, request, certificate = (folder / n for n in ("ca.key", "ca.pem", "key", "request", "pem"))
    extensions = folder / "extensions"
    extensions.write_text(f"subjectAltName=IP:{address}\nauthorityKeyIdentifier=keyid\n")
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Quantyard test"]
    sign = ["openssl", "x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", extensions]
    for argv in (
        [*new, "-x509", "-days", "2", "-addext", "keyUsage=keyCertSign", "-keyout", ca_key, "-out", ca],
        [*new, "-keyout", key, "-out", request],
        [*sign, "-in", request, "-CA", ca, "-CAkey", ca_key, "-out", certificate],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    return ca, key, certificate


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, context: ssl.SSLContext, behind: tuple[str, int]) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        with suppress(OSError):  # a client that does not trust us hangs up in the handshake
            outer = context.wrap_socket(plain, server_side=True)
            inner = socket.create_connection(behind)
            for a, b in ((outer, inner), (inner, outer)):
                threading.Thread(target=_pump, args=(a, b), daemon=True).start()


@pytest.fixture
def company_hub(docker_client: Any, tiny_model: Path, tmp_path: Path) -> Iterator[TlsFront]:
    """The small Hub, with TLS in front, on the address of Docker's bridge."""
    address = docker_client.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    try:
        hub = HubServer(address)
    except OSError as error:
        pytest.skip(f"{address} is no address of this machine: {error}")
    ca, key, certificate = _certificate(tmp_path, address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with hub, socket.create_server((address, 0)) as listener:
        hub.add_repo(REPO, folder=tiny_model)
        host, port = hub.endpoint.removeprefix("http://").split(":")
        threading.Thread(target=_serve, args=(listener, context, (host, int(port))), daemon=True).start()
        yield TlsFront(f"https://{address}:{listener.getsockname()[1]}", ca)


def test_an_authority_that_is_not_known_is_named_with_the_remedy(company_hub: TlsFront, tmp_path: Path) -> None:
    done = run("plan", MODEL=REPO, ARTIFACTS=str(tmp_path), HF_ENDPOINT=company_hub.endpoint, NO_PROXY="*", **NO_CA)
    assert done.returncode == 4, done.stderr
    assert "is not trusted" in done.stderr and "EXTRA_CA=file" in done.stderr


def test_extra_ca_reaches_the_planner_and_the_fetch_container(
    builder_image: str, company_hub: TlsFront, tmp_path: Path
) -> None:
    trusted = NO_CA | {"EXTRA_CA": str(company_hub.ca)}
    made = run_json(
        "build", MODEL=REPO, QUANT="BF16", ENGINE="docker", ARTIFACTS=str(tmp_path / "artifacts"),
        HF_ENDPOINT=company_hub.endpoint, NO_PROXY="*", **trusted,
    )
    assert made["ran"] == ["fetch", "convert", "verify BF16"]
