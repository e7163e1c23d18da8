"""A node with Docker, or with Podman behind Docker's API: it pulls by digest, runs a stage in a closed container, and
leaves nothing. The image is a small one with a shell, which says what it sees in place of a stage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import docker
from quantyard.engines.docker import StageContainers
from quantyard.engines.podman_service import podman_service
from quantyard.engines.pulled_engine import PulledEngine
from quantyard.errors import EngineError, ImageRegistryUnreachable
from quantyard.paths import REPO_DIR
from quantyard.protocol.exit_codes import Answer
from quantyard.requests import ImageSettings, RunEnvironment
from quantyard.store.artifact import ModelId
from quantyard.store.stages import ModelStore
from tests.docker.registry import Registry, registry
from tests.unit.test_batch_engine import a_spec, an_input

pytestmark = pytest.mark.slow
IMAGES = ImageSettings({"builder": "base:1"}, None, {})
# Limits and a runtime that a container without rights of its own allows, where tests run in one.
CONF = '[containers]\ndefault_ulimits=["nofile=1024:1024","nproc=1024:1024"]\n[engine]\ncgroup_manager="cgroupfs"\n'
SEES = (
    'read line; echo "first $line"; echo "uid $(id -u)"; grep -E "CapEff|NoNewPrivs" /proc/self/status; '
    "ls /sys/class/net; cat /in/source/model.gguf; echo; (touch /x || touch /in/y) 2>/dev/null && echo writable; "
    "touch /out/hello; exit 7"
)


@pytest.fixture(params=["docker", "podman"])
def kind(request: pytest.FixtureRequest) -> str:
    """What runs containers on the node."""
    if request.param == "podman" and (not shutil.which("podman") or os.geteuid() != 0):
        pytest.skip("podman is not installed, or needs root here")
    return str(request.param)


@pytest.fixture
def node_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that Podman, too, trusts without TLS."""
    (tmp_path / "registry").mkdir()
    with registry(tmp_path / "registry") as running:
        text = f'[[registry]]\nlocation = "{running.address}"\ninsecure = true\n'
        (tmp_path / "registries.conf").write_text(text)
        (tmp_path / "containers.conf").write_text(CONF + 'runtime="runc"\n' * bool(shutil.which("runc")))
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
        monkeypatch.setenv("CONTAINERS_CONF", str(tmp_path / "containers.conf"))
        yield running


def _pushed(image: str, address: str) -> str:
    """The image by digest, pushed by Docker."""
    tag = f"{address}/team/quantyard-builder:1"
    subprocess.run(["docker", "tag", image, tag], check=True)
    said = subprocess.run(["docker", "push", tag], capture_output=True, text=True, check=True).stdout
    subprocess.run(["docker", "rmi", tag], capture_output=True, check=True)
    return f"{tag.rpartition(':')[0]}@{said.partition('digest: ')[2].split()[0]}"


@contextmanager
def a_node(kind: str) -> Iterator[Any]:
    """Its daemon."""
    with podman_service() if kind == "podman" else nullcontext():
        yield docker.from_env()


def test_a_stage_runs_in_a_closed_container_of_the_image_that_was_pulled(
    kind: str, node_registry: Registry, docker_client: Any, balancer_image: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reference, own = _pushed(balancer_image, node_registry.address), StageContainers._config
    said = {"command": ["sh", "-c", SEES], "entrypoint": []}
    monkeypatch.setattr(StageContainers, "_config", lambda *given: own(*given) | said)
    given = {"source": an_input(tmp_path / "model")}
    spec, models = a_spec("quantize", given), ModelStore(tmp_path / "artifacts", ModelId("local", "tiny", "0" * 40))
    space = models.begin(spec.label, spec.key, spec.request, given, resumable=False)
    with a_node(kind) as daemon:
        engine = PulledEngine(RunEnvironment(REPO_DIR), IMAGES, reference, kind)
        assert engine.describe("builder")["engine"] == kind
        with pytest.raises(EngineError, match="exit code 7") as caught:
            engine.run(spec, space, given, print)
        assert not daemon.containers.list(all=True, filters={"label": f"quantyard.key={spec.key}"})
        daemon.images.remove(reference, force=True)
    lines = caught.value.detail.splitlines()
    assert lines[0] == "first {}" and f"uid {os.getuid()}" in lines and "weights" in lines and "lo" in lines
    assert "CapEff:\t0000000000000000" in lines and "NoNewPrivs:\t1" in lines
    assert "eth0" not in lines and "writable" not in lines and (space.out_dir / "hello").exists()
    assert "DOCKER_HOST" not in os.environ


def test_what_cannot_be_pulled_is_told_with_what_to_do(kind: str, node_registry: Registry) -> None:
    digest = "sha256:" + "0" * 64
    with a_node(kind):
        for address, error, code in (
            (node_registry.address, EngineError, Answer.ENGINE), ("127.0.0.1:1", ImageRegistryUnreachable, 4),
        ):  # fmt: skip
            engine = PulledEngine(RunEnvironment(REPO_DIR), IMAGES, f"{address}/team/builder@{digest}", kind)
            with pytest.raises(error) as caught:
                engine.identity("builder")
            assert caught.value.code == code and caught.value.hint
