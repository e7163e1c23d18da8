"""Real servers of the demo model, in containers: one as the contract test starts it, others with templates that know
tools.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.api_checks.launch import Wire, free_loopback_port
from tests.conftest import run_json

LOAD_TIMEOUT_S = 120.0
# What the stage does before its checks, in the image that it runs in: the proxy, and llama-server behind it.
SERVE = """
import json, os, pathlib, time
from server.api_checks.launch import Launch, ServedModel
folder = pathlib.Path("/tmp/served")
folder.mkdir()
with ServedModel(Launch(pathlib.Path("/demo.gguf"), folder, os.environ, threads=1)) as served:
    print(json.dumps({"address": served.address, "key": served.key}), flush=True)
    time.sleep(3600)
"""
TEMPLATES = Path(__file__).parent  # the chat templates beside this file


@dataclass(frozen=True)
class Served:
    """A server that is ready, and its key."""

    address: str
    key: str


@pytest.fixture(scope="session")
def demo_gguf(demo_model: Path, builder_image: str) -> Path:
    """The demo model's Q8_0."""
    made = run_json("build", MODEL=str(demo_model), QUANT="Q8_0", ENGINE="docker")
    return Path(made["files"][0]["path"]).resolve()


@pytest.fixture(scope="module")
def served(docker_client: Any, images: dict[str, str], demo_gguf: Path) -> Iterator[Served]:
    container = docker_client.containers.run(
        images["contract_image"], ["python3", "-c", SERVE], detach=True, network_mode="host", read_only=True,
        tmpfs={"/tmp": "mode=1777"}, volumes={str(demo_gguf): {"bind": "/demo.gguf", "mode": "ro"}},
    )
    try:
        yield Served(**json.loads(_first_line(container)))
    finally:
        container.remove(force=True)


def _first_line(container: Any) -> str:
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    while time.monotonic() < deadline:
        if "\n" in (said := container.logs(stderr=False).decode()):
            return said.splitlines()[0]
        time.sleep(0.2)
    pytest.fail(f"the server is not ready after {LOAD_TIMEOUT_S} s: {container.logs(tail=20).decode()}")


@contextlib.contextmanager
def llama_server(client: Any, image: str, gguf: Path, folder: Path, *flags: str) -> Iterator[Served]:
    """A llama-server on a port of loopback, ready when entered and gone when left."""
    served = Served(f"http://127.0.0.1:{free_loopback_port()}", secrets.token_urlsafe(32))
    key_file = folder / "api-key"
    key_file.write_text(served.key + "\n")
    key_file.chmod(0o644)  # the container's user is another
    mounts = {gguf: "/model.gguf", key_file: "/api-key", TEMPLATES: "/templates"}
    command = [
        "/app/llama-server", "--model", "/model.gguf", "--alias", "demo", "--host", "127.0.0.1", "--port",
        served.address.rpartition(":")[2], "--api-key-file", "/api-key", "--threads", "1", "--parallel", "4",
        "--ctx-size", "16384", *flags,
    ]  # fmt: skip
    volumes = {str(path): {"bind": inside, "mode": "ro"} for path, inside in mounts.items()}
    container = client.containers.run(image, command, detach=True, network_mode="host", volumes=volumes)
    try:
        _wait_until_ready(served, container)
        yield served
    finally:
        container.remove(force=True)


def _wait_until_ready(served: Served, container: Any) -> None:
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if Wire(served.address, served.key).get("/health").status == 200:
                return
        time.sleep(0.02)
    pytest.fail(f"llama-server is not ready after {LOAD_TIMEOUT_S} s: {container.logs(tail=20).decode()}")
