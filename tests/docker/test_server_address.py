"""Upstream's own variables that move the server's address: its health check and the watch over its start follow."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.docker.server import KEY, Served, server, wait_for

TLS = {"LLAMA_ARG_SSL_KEY_FILE": "/tls/key.pem", "LLAMA_ARG_SSL_CERT_FILE": "/tls/cert.pem"}


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for a name that is not the one it is asked by, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=models.example"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*new, *files], check=True, capture_output=True)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


def is_watched(served: Served) -> bool:
    """Whether the watch over the start goes on: a shell beside the entrypoint's own and that over files."""
    commands = [row[-1] for row in served.container.top()["Processes"]]
    return sum(command.startswith("/bin/sh ") and "entrypoint.sh" in command for command in commands) > 2


SLOW = pytest.mark.slow
CASES = [
    pytest.param({"LLAMA_ARG_API_PREFIX": "/llm"}, "http", 8080, "/llm", id="prefix", marks=SLOW),
    pytest.param(TLS, "https", 8080, "", id="TLS", marks=SLOW),
    pytest.param({"LLAMA_ARG_PORT": "9124"}, "http", 9124, "", id="port", marks=SLOW),
    pytest.param(
        {**TLS, "LLAMA_ARG_API_PREFIX": "/v2/llm", "LLAMA_ARG_PORT": "9125"}, "https", 9125, "/v2/llm", id="all"
    ),
    pytest.param({"LLAMA_API_KEY": f"{KEY},other", "API_KEY": "off"}, "http", 8080, "", id="key", marks=SLOW),
]


@pytest.mark.parametrize("several", [False, True], ids=["one model", "router"])
@pytest.mark.parametrize(("variables", "scheme", "port", "prefix"), CASES)
def test_the_server_is_healthy_and_answers_where_upstreams_variables_put_it(
    docker_client: Any, server_image: str, demo_q4: Path, tls: Path, tmp_path: Path, variables: dict[str, str],
    scheme: str, port: int, prefix: str, several: bool,
) -> None:  # fmt: skip
    model = demo_q4
    if several:
        model = tmp_path / "models"
        model.mkdir()
        for name in ("a b", "b,c"):
            shutil.copy(demo_q4, model / f"{name}.gguf")
    volumes = {str(tls): {"bind": "/tls", "mode": "ro"}}
    with server(
        docker_client, server_image, model, tmp_path, environment=variables, inside=port, volumes=volumes
    ) as served:
        served.wait_healthy()
        wait_for(lambda: not is_watched(served), 30, served.logs)
        url = f"{scheme}{served.address.removeprefix('http')}{prefix}/v1/completions"
        body = {"prompt": "One, two,", "max_tokens": 2, "model": "a b" if several else demo_q4.stem}
        answer = requests.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}, verify=False, timeout=60)  # noqa: S501
        assert answer.status_code == 200, answer.text


def test_a_health_check_asks_no_model_where_a_person_loads_them(
    docker_client: Any, server_image: str, demo_q4: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    for name in ("a", "b"):
        shutil.copy(demo_q4, tmp_path / "models" / f"{name}.gguf")
    environment = {"LLAMA_ARG_MODELS_AUTOLOAD": "0"}
    with server(docker_client, server_image, tmp_path / "models", tmp_path, environment=environment) as served:
        served.wait_healthy()
        assert {model["status"]["value"] for model in served.get("/v1/models").json()["data"]} == {"unloaded"}
