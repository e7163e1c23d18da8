"""What a daemon on a Unix socket is asked without the SDK, and how each way that it fails is told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantyard.engines.docker_daemon import SocketDaemon
from quantyard.engines.docker_engine import DockerEngine, find_docker_daemon
from quantyard.errors import EngineError
from quantyard.paths import REPO_DIR
from quantyard.requests import ImageSettings, RunEnvironment
from tests.unit.fake_daemon import INFO, FakeDaemon, fake_daemon


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path) as running:
        monkeypatch.setenv("DOCKER_HOST", running.host)
        yield running


def test_it_tells_of_its_machine_and_its_images_in_the_version_of_the_api_that_it_speaks(daemon: FakeDaemon) -> None:
    daemon.images["ghcr.io/org/llama:full"] = {"Id": "sha256:12"}
    found = find_docker_daemon()
    assert found.info() == INFO and found.version() == "28.1"
    assert found.image("ghcr.io/org/llama:full") == {"Id": "sha256:12"}
    assert found.image("ghcr.io/org/llama:other") is None
    assert daemon.asked[:2] == ["/_ping", "/v1.47/info"]


def test_an_engine_knows_an_image_when_its_base_and_ours_on_it_are_there(daemon: FakeDaemon) -> None:
    environment, images = RunEnvironment(REPO_DIR), ImageSettings({"builder": "base:1"}, None, {})
    assert DockerEngine(environment, images).identity("builder") is None
    digest = f"sha256:{'ab' * 32}"
    daemon.images["base:1"] = {"Id": "sha256:12", "RepoDigests": [f"base@{digest}"]}
    engine = DockerEngine(environment, images)
    assert engine.identity("builder") is None
    assert engine.describe("builder") == {"engine": "docker", "base_image": "base:1", "base_digest": digest}
    ours = {"Id": "sha256:34", "Config": {"Labels": {"quantyard.recipe": "56"}}}
    daemon.images[engine._tag("builder", digest)] = ours
    identity = engine.identity("builder")
    assert identity is not None and identity.startswith(f"{digest}+")
    told = engine.describe("builder")
    assert (told["docker"], told["builder_image"], told["recipe"]) == ("28.1", "sha256:34", "56")


@pytest.mark.parametrize("kind", ["nothing", "a file", "a socket that nobody listens to"])
def test_where_no_daemon_answers_the_fact_and_the_remedy_are_told(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "docker.sock"
    if kind == "a file":
        path.write_text("")
    if kind.startswith("a socket"):
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(str(path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with pytest.raises(EngineError, match="The Docker daemon does not answer: ") as caught:
        find_docker_daemon()
    assert "ENGINE=local" in caught.value.hint


def test_a_daemon_that_says_nothing_is_not_waited_for_forever(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "docker.sock"))
        silent.listen()
        with pytest.raises(EngineError, match="timed out"):
            SocketDaemon(str(tmp_path / "docker.sock"), timeout_s=0.05)


@pytest.mark.parametrize("raw", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_an_answer_that_breaks_off_or_is_not_http_is_an_error_of_the_engine(raw: bytes, daemon: FakeDaemon) -> None:
    found, daemon.raw = find_docker_daemon(), raw
    with pytest.raises(EngineError, match="The Docker daemon does not answer"):
        found.info()


def test_an_answer_that_is_not_json_is_an_error_of_the_engine(daemon: FakeDaemon) -> None:
    found, daemon.raw = find_docker_daemon(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]"
    with pytest.raises(EngineError, match="The Docker daemon does not answer"):
        found.info()


def test_an_error_of_the_daemon_is_told_in_its_own_words(daemon: FakeDaemon) -> None:
    found, daemon.status = find_docker_daemon(), 500
    with pytest.raises(EngineError, match=r"The Docker daemon failed: .*it was told to fail"):
        found.info()
