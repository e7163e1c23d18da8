"""ENGINE=slurm on a real Slurm of two nodes with a bucket as the store, and with containers whose image lies in a
registry. The same files as on this machine, and no key of the bucket anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.shared_stores import KEYS, moto_server
from tests.cluster.slurm_nodes import SlurmNodes
from tests.cluster.test_slurm_build import asked, digests, stages  # noqa: F401  (a fixture)
from tests.conftest import run_json
from tests.docker.registry import Registry, registry

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(slurm: SlurmNodes, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a store in a bucket; the server listens where the nodes reach it."""
    told = slurm.call("scontrol", "show", "config")
    host = next(line for line in told.splitlines() if line.startswith("SlurmctldHost")).rpartition("(")[2].rstrip(")")
    keys = tmp_path / "credentials"
    keys.write_text("\n".join(["[default]", *(f"{name.lower()} = {value}" for name, value in KEYS.items()), ""]))
    keys.chmod(0o600)
    with moto_server(host) as address:
        yield {
            "AWS_SHARED_CREDENTIALS_FILE": str(keys), "AWS_ENDPOINT_URL": address, "STORE": "s3://yard/tests",
            "AWS_DEFAULT_REGION": KEYS["AWS_DEFAULT_REGION"], "NO_PROXY": host, "no_proxy": host,
        }  # fmt: skip


@pytest.mark.usefixtures("local_tools")
def test_a_build_with_its_store_in_a_bucket_shows_no_key_and_repeats_nothing(
    slurm: SlurmNodes, asked: dict[str, str], bucket: dict[str, str], tmp_path: Path  # noqa: F811
) -> None:
    made = run_json("build", **asked | bucket)
    here = run_json("build", **asked | {"ENGINE": "local", "ARTIFACTS": str(tmp_path / "here")})
    assert digests(made) == digests(here)
    assert {record["ran_by"]["host"] for record in stages(made).values()} <= {"node1", "node2"}
    assert run_json("build", **asked | bucket)["ran"] == []
    jobs = slurm.call("scontrol", "show", "job")
    scripts = [slurm.call("scontrol", "write", "batch_script", job, "-") for job in slurm.jobs("all")]
    logs = [path.read_text() for path in (tmp_path / "artifacts" / ".cluster" / "logs").glob("*.log")]
    assert len(scripts) >= 3 and len(logs) >= 3
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in "".join([jobs, *scripts, *logs, json.dumps(made)])


@pytest.fixture
def node_registry(tmp_path: Path) -> Iterator[Registry]:
    folder = tmp_path / "registry"
    folder.mkdir()
    with registry(folder) as running:
        yield running


def test_nodes_run_the_image_that_was_pushed_once(
    slurm: SlurmNodes, asked: dict[str, str], node_registry: Registry, builder_image: str, tmp_path: Path  # noqa: F811
) -> None:
    in_containers = asked | {"NODE_ENGINE": "docker", "NODE_REGISTRY": f"{node_registry.address}/team"}
    made = run_json("build", **in_containers)
    here = run_json("build", **asked | {"ENGINE": "docker", "ARTIFACTS": str(tmp_path / "here")})
    assert digests(made) == digests(here)
    ran_by, ran_here = stages(made), stages(here)
    assert {record["ran_by"]["host"] for record in ran_by.values()} <= {"node1", "node2"}
    assert {label: record["key"] for label, record in ran_by.items()} == {
        label: record["key"] for label, record in ran_here.items()
    }, "a key does not depend on where the image lies"
    assert {record["ran_by"]["builder_image"] for record in ran_by.values()} == {builder_image}
    run_json("build", **in_containers | {"QUANT": "Q4_0", "ARTIFACTS": str(tmp_path / "second")})
    assert not slurm.jobs()
