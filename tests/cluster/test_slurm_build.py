"""ENGINE=slurm on a real Slurm of two nodes: the same files as ENGINE=local, and nothing is repeated or left behind."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm_nodes import SlurmNodes
from tests.conftest import run_json

pytestmark = pytest.mark.usefixtures("local_tools")


@pytest.fixture
def asked(slurm: SlurmNodes, tiny_model: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of a build on the cluster, in a store of its own."""
    return {
        "ENGINE": "slurm", "MODEL": str(tiny_model), "QUANT": "Q8_0", "ARTIFACTS": str(tmp_path / "artifacts"),
        "SCRATCH": str(tmp_path / "scratch"), "SLURM_CONF": slurm.conf,
    }  # fmt: skip


def digests(made: dict[str, Any]) -> dict[str, str]:
    return {file["quant"]: hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest() for file in made["files"]}


def stages(made: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(Path(made["manifest"]).read_text())["stages"]
    assert isinstance(found, dict)
    return found


def test_a_build_on_two_nodes_makes_the_files_of_this_machine_and_says_where(
    slurm: SlurmNodes, asked: dict[str, str], tmp_path: Path
) -> None:
    made = run_json("build", **asked)
    here = run_json("build", **asked | {"ENGINE": "local", "ARTIFACTS": str(tmp_path / "here")})
    assert digests(made) == digests(here)
    for label, record in stages(made).items():
        assert record["ran_by"]["host"] in ("node1", "node2"), label
        assert record["ran_by"]["job"].startswith("slurm ")
        assert record["ran_by"]["packages"] == stages(here)[label]["ran_by"]["packages"]
    began = time.monotonic()
    assert run_json("build", **asked)["ran"] == [], "nothing is repeated"
    assert time.monotonic() - began < 15
    assert not slurm.jobs()
