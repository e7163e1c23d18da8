"""A real llama-server with the demo model, for the clients."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from quantyard.paths import REPO_DIR
from server.client.client import Client

KEY = "key-of-the-clients-tests"
READY_WITHIN_S = 120


@dataclass
class Server:
    """A running llama-server."""

    container: Any
    url: str
    key_file: Path

    def client(self, **more: Any) -> Client:
        return Client(self.url, self.key_file, **more)


@pytest.fixture(scope="session")
def gguf(demo_model: Path) -> Path:
    """The demo model, quantized."""
    built = (REPO_DIR / "artifacts" / "local" / demo_model.name).glob("*/*-Q8_0.gguf")
    return max(built, key=lambda path: path.stat().st_mtime)


def start(docker_client: Any, image: str, gguf: Path, key_file: Path) -> Server:
    """A llama-server on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--port", str(port), "--threads", "1", "-np", "2", "-c", "4096", "--api-key", KEY, "--alias", "demo"]
    container = docker_client.containers.run(
        image, ["-m", "/model.gguf", *flags], entrypoint="/app/llama-server", detach=True, network_mode="host",
        volumes={str(gguf.resolve()): {"bind": "/model.gguf", "mode": "ro"}},
    )
    server = Server(container, f"http://127.0.0.1:{port}/v1", key_file)
    try:
        _wait(server)
    except BaseException:
        container.remove(force=True)
        raise
    return server


def _wait(server: Server) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        try:
            if httpx2.get(server.url.removesuffix("/v1") + "/health", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.02)
    pytest.fail(f"llama-server is not ready after {READY_WITHIN_S} s: {server.container.logs().decode()[-2000:]}")


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "api-key"
    path.write_text(KEY + "\n")
    return path


@pytest.fixture(scope="session")
def server(docker_client: Any, builder_image: str, gguf: Path, key_file: Path) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    running = start(docker_client, builder_image, gguf, key_file)
    yield running
    running.container.remove(force=True)


@pytest.fixture
def own_server(docker_client: Any, builder_image: str, gguf: Path, key_file: Path) -> Iterator[Server]:
    """One to be killed."""
    running = start(docker_client, builder_image, gguf, key_file)
    yield running
    running.container.remove(force=True)
