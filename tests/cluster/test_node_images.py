"""Images of nodes: pushed to a real registry once, pulled by digest by a node's daemon, and every way that fails. The
images are empty, but for the labels that say what they are.
"""

from __future__ import annotations

import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantyard.batch.pushed_images import PushedImages
from quantyard.engines.docker_engine import DockerEngine
from quantyard.engines.images import engine_code_version
from quantyard.engines.pulled_engine import PulledEngine
from quantyard.errors import EngineError, ImageRegistryUnreachable, QuantyardError
from quantyard.node.run import NodePlace, run_node_spec
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.protocol.exit_codes import Answer
from quantyard.protocol.node_spec import ENDED, NodeEnd, NodeSpec
from quantyard.requests import ImageSettings, RunEnvironment
from quantyard.shared_store.attempts import attempt_prefixes
from quantyard.shared_store.posix_objects import PosixObjects
from tests.docker.registry import Registry, guarded_registry, registry, registry_program
from tests.unit.test_batch_engine import a_spec

IMAGES = ImageSettings({"builder": "base:1"}, None, {})


class BuiltEmpty(DockerEngine):
    """An engine whose image of every kind is an empty one."""

    tag = ""

    def image_name(self, image: str) -> str:
        return self.tag


@dataclass
class Yard:
    """A registry, and an empty image of this machine."""

    client: Any
    registry: Registry
    tools: BuiltEmpty

    def pushed(self, path: str = "team") -> PushedImages:
        return PushedImages(self.tools, f"{self.registry.address}/{path}")

    def forget(self, reference: str) -> None:
        """This machine is another one, which has pulled nothing."""
        self.client.images.remove(self.client.images.get(self.tools.tag).id, force=True)
        assert self.tools._daemon.image(reference) is None


@pytest.fixture
def yard(docker_client: Any, tmp_path: Path) -> Iterator[Yard]:
    if registry_program() is None:
        pytest.skip("docker-registry is not installed")
    tools = BuiltEmpty(RunEnvironment(REPO_DIR), IMAGES)
    tools.tag = f"quantyard/empty:{uuid.uuid4().hex[:12]}"
    _import_empty(tools.tag, "linux/amd64")
    with registry(tmp_path) as running:
        yield Yard(docker_client, running, tools)
    for image in docker_client.images.list(filters={"label": f"quantyard.recipe={tools.tag}"}):
        docker_client.images.remove(image.id, force=True)


def _import_empty(tag: str, platform: str) -> None:
    labels = f'LABEL org.opencontainers.image.base.digest="sha256:12" quantyard.recipe="{tag}"'
    argv = ["docker", "import", "--platform", platform, "--change", labels, "-", tag]
    subprocess.run(argv, input=bytes(10240), capture_output=True, check=True)  # an archive without a file


def a_puller(reference: str) -> PulledEngine:
    return PulledEngine(RunEnvironment(REPO_DIR), IMAGES, reference, "docker")


def refuse(reference: str) -> QuantyardError:
    with pytest.raises(QuantyardError) as caught:
        a_puller(reference).identity("builder")
    return caught.value


def test_an_image_is_pushed_once_and_a_node_pulls_it_by_digest(yard: Yard) -> None:
    notes: list[str] = []
    reference = yard.pushed().push_missing("builder", notes.append)
    assert reference.startswith(f"{yard.registry.address}/team/quantyard-builder@sha256:") and len(notes) == 1
    assert yard.pushed().push_missing("builder", notes.append) == reference and len(notes) == 1
    other = yard.pushed("other/path").push_missing("builder", notes.append)
    assert other.partition("@")[2] == reference.partition("@")[2] and len(notes) == 2
    yard.forget(reference)
    node = a_puller(reference)
    identity = node.identity("builder")
    assert identity == f"sha256:12+{yard.tools.tag}" == a_puller(other).identity("builder"), "wherever it lies"
    told = node.describe("builder")
    assert (told["engine"], told["base_digest"], told["recipe"]) == ("docker", "sha256:12", yard.tools.tag)
    assert yard.registry.address not in str(told)


def test_an_image_that_is_gone_says_what_pushes_it_again_and_that_does(yard: Yard) -> None:
    gone = yard.pushed().push_missing("builder", print)
    digest = gone.partition("@")[2]
    lost = gone.replace("/team/", "/elsewhere/")
    error = refuse(lost)
    assert error.code == Answer.ENGINE and digest in error.message and "pushes the image again" in error.hint
    notes: list[str] = []
    assert yard.pushed("elsewhere").push_missing("builder", notes.append) == lost and len(notes) == 1
    assert lost in yard.tools.digests("builder")
    yard.forget(lost)
    assert a_puller(lost).identity("builder")


def test_an_image_for_other_machines_is_refused(yard: Yard) -> None:
    _import_empty(yard.tools.tag, "linux/arm64")
    reference = yard.pushed().push_missing("builder", print)
    yard.forget(reference)
    error = refuse(reference)
    assert error.code == Answer.ENGINE and "arm64" in error.message and "SLURM_CONSTRAINT" in error.hint


def test_a_registry_that_is_down_is_the_networks_fault_at_both_ends_and_a_node_says_so(
    yard: Yard, tmp_path: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        silent = f"127.0.0.1:{unused.getsockname()[1]}/team"
        began = time.monotonic()
        with pytest.raises(ImageRegistryUnreachable, match="does not answer") as caught:
            PushedImages(yard.tools, silent).push_missing("builder", print)
        assert caught.value.code == ExitCode.NETWORK and "NODE_REGISTRY" in caught.value.hint
        assert time.monotonic() - began < 20, "a push would try for more than a minute"
        store, stage = PosixObjects(tmp_path / "store"), a_spec()
        place = NodePlace(store, tmp_path / "scratch", REPO_DIR, "node1", "slurm 7")
        spec = NodeSpec(
            label="convert", stage="convert", key=stage.key, code=engine_code_version(REPO_DIR, "builder"),
            image="sha256:12+x", engine="docker",
            pull=f"{silent}/quantyard-builder@sha256:{'0' * 64}", time_limit_s=60,
            request=stage.request.model_dump(mode="json"),
        )  # fmt: skip
        with pytest.raises(ImageRegistryUnreachable):
            run_node_spec(spec, place, a_puller(spec.pull), print)
    (prefix,) = attempt_prefixes(store, spec.key)
    end = NodeEnd.model_validate_json(store.read_bytes(prefix + ENDED))
    assert end.result is not None and end.result.exit_code is ExitCode.NETWORK, "so it is tried again, with waits"


def test_a_registry_that_refuses_says_how_to_log_in(yard: Yard, tmp_path: Path) -> None:
    folder = tmp_path / "guarded"
    folder.mkdir()
    with guarded_registry(folder) as address, pytest.raises(EngineError) as caught:
        PushedImages(yard.tools, f"{address}/team").push_missing("builder", print)
    assert f"docker login {address}" in caught.value.hint
