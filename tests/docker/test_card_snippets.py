"""How to run it, as the card says: its Python runs against a served model, and its flags are the server's own.

What needs tools that are not here (Ollama, LM Studio, docker model) is held to its form in tests/unit/test_card.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from quantyard.card.render import render_card
from tests.cards import CONTEXT
from tests.docker.server import wait_for
from tests.manifests import manifest_of

SERVER = "/app/llama-server"
ADDRESS = "http://127.0.0.1:8080/v1"  # as on the card


@pytest.fixture(scope="module")
def card() -> str:
    return render_card(manifest_of(), CONTEXT)


def _blocks(card: str, language: str) -> list[str]:
    """The blocks of code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


def _command(card: str) -> list[str]:
    """The card's `llama-server …`."""
    (found,) = (argv for block in _blocks(card, "sh") if (argv := shlex.split(block))[0] == "llama-server")
    return found


@pytest.fixture(scope="module")
def served(docker_client: Any, builder_image: str, demo_q4: Path, card: str) -> Iterator[str]:
    """The demo model, served by the card's own command line but for where the file comes from, on a free port."""
    _, hf, _, *flags = _command(card)
    assert hf == "-hf"
    flags[flags.index("--host") + 1] = "0.0.0.0"  # noqa: S104  (of the container)
    container = docker_client.containers.run(
        builder_image, ["-m", "/model.gguf", *flags, "--threads", "1", "-c", "2048", "-np", "1"], entrypoint=SERVER,
        detach=True, ports={"8080/tcp": ("127.0.0.1", None)},
        volumes={str(demo_q4.resolve()): {"bind": "/model.gguf", "mode": "ro"}},
    )
    try:
        container.reload()
        address = f"http://127.0.0.1:{container.ports['8080/tcp'][0]['HostPort']}"
        wait_for(lambda: _answers(address), 120, lambda: container.logs().decode()[-2000:])
        yield f"{address}/v1"
    finally:
        container.remove(force=True, v=True)


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.parametrize("imported", ["from openai", "import outlines"])
def test_the_cards_python_runs_as_it_stands_against_a_served_model(served: str, card: str, imported: str) -> None:
    script = next(block for block in _blocks(card, "python") if block.startswith(imported) or f"\n{imported}" in block)
    assert script.count(ADDRESS) == 1
    run = subprocess.run(
        [sys.executable, "-c", script.replace(ADDRESS, served)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout.strip()
    if imported == "import outlines":
        assert re.fullmatch(r"sentiment='(good|bad)' stars=[1-5]", said)
    else:
        assert len(said) > 10


def test_every_python_example_of_the_card_is_run_here(card: str) -> None:
    assert len(_blocks(card, "python")) == 2


def test_every_flag_of_the_card_is_one_of_the_server(docker_client: Any, builder_image: str, card: str) -> None:
    said = docker_client.containers.run(builder_image, ["--help"], entrypoint=SERVER, remove=True).decode()
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", said))
    compose = yaml.safe_load(_blocks(card, "yaml")[0])
    commands = [_command(card), shlex.split(compose["services"]["model"]["command"])]
    flags = {word for argv in commands for word in argv if word.startswith("-")}
    assert flags == {"-hf", "--host", "--port"} and flags <= known
    assert "LLAMA_CACHE" in said or "LLAMA_CACHE" in compose["services"]["model"]["environment"]


def test_compose_takes_the_cards_file(docker_client: Any, card: str, tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(_blocks(card, "yaml")[0])
    run = subprocess.run(["docker", "compose", "-f", path, "config"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (port,) = yaml.safe_load(run.stdout)["services"]["model"]["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "8080", 8080)
