"""ENGINE=kubernetes with the real image of nodes: its pods are containers of Docker, as closed as the manifests ask,
and the store is a server of S3. Only the API is a stand-in.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from tests.cluster.kube_pods import DockerPods
from tests.cluster.shared_stores import KEYS, moto_server
from tests.conftest import run, run_json
from tests.unit.kube_api_server import kube_server

pytestmark = pytest.mark.slow
_NAME = "quantyard/node:tests"
_NOBODY = 65532


@pytest.fixture(scope="module")
def node_image(docker_client: Any) -> str:
    """The id of the image of nodes, built of this checkout."""
    subprocess.run([REPO_DIR / "scripts" / "node-image.sh", _NAME], env=os.environ | {"PUSH": "0"}, check=True)
    return str(docker_client.images.get(_NAME).id)


@pytest.fixture
def pods(node_image: str, tmp_path: Path) -> Iterator[DockerPods]:
    secret = tmp_path / "secret"
    secret.mkdir()
    keys = [f"{name.lower()} = {value}" for name, value in KEYS.items() if "KEY" in name]
    (secret / "credentials").write_text("\n".join(["[default]", *keys, ""]))
    os.chmod(secret / "credentials", 0o440)  # noqa: PTH101
    os.chown(secret / "credentials", _NOBODY if os.geteuid() == 0 else os.getuid(), -1)
    with kube_server() as server:
        server.add("secrets", {"metadata": {"name": "yard-s3"}})
        yield DockerPods(server, node_image, tmp_path, {"yard-s3": secret})


@pytest.fixture
def asked(pods: DockerPods, node_image: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a build in pods."""
    with moto_server() as address:
        yield {
            **KEYS, "AWS_ENDPOINT_URL": address, "STORE": "s3://yard/tests", "ENGINE": "kubernetes",
            "KUBECONFIG": str(pods.server.kubeconfig(tmp_path)), "KUBE_S3_SECRET": "yard-s3",
            "KUBE_IMAGE": f"registry.lab/quantyard-node@{node_image}", "ARTIFACTS": str(tmp_path / "artifacts"),
        }  # fmt: skip


def test_doctor_finds_the_image_whole_in_a_closed_pod(asked: dict[str, str], pods: DockerPods) -> None:
    done = run("doctor", **asked)
    assert "hardened, with the image" in done.stdout + done.stderr, (done.stdout, done.stderr, pods.said)


def test_a_build_in_closed_pods_makes_a_file_and_repeats_nothing(
    asked: dict[str, str], pods: DockerPods, tiny_model: Path
) -> None:
    build = {**asked, "MODEL": str(tiny_model), "QUANT": "Q8_0"}
    made = run_json("build", **build)
    records = json.loads(Path(made["manifest"]).read_text())["stages"]
    assert {record["ran_by"]["host"] for record in records.values()} == {"n1"}
    assert all(record["ran_by"]["job"].startswith("kubernetes quantyard-") for record in records.values())
    assert Path(made["files"][0]["path"]).stat().st_size > 10**6
    ran = len(pods.argvs)
    assert ran >= 3 and run_json("build", **build)["ran"] == [] and len(pods.argvs) == ran
    spoken = "\n".join(map(" ".join, pods.argvs)) + "".join(pods.said) + json.dumps(pods.server.of("jobs"))
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in spoken
