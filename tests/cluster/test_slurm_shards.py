"""A divergence in shards on two nodes of a real Slurm has the numbers of one run on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm_nodes import SlurmNodes
from tests.conftest import run_json
from tests.shards import without_times

pytestmark = pytest.mark.usefixtures("local_tools")
SUITE = "tasks: []\nneeds_network: false\ndivergence: {n_chunks: 6, n_ctx: 128}\nspeed: null\n"


@pytest.mark.slow
def test_a_divergence_in_shards_on_slurm_is_that_of_one_run_here(
    slurm: SlurmNodes, tiny_model: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "own.yaml"
    suite.write_text(SUITE)
    asked = {"MODEL": str(tiny_model), "QUANT": "Q8_0", "SUITE": str(suite), "THREADS": "1"}
    on_slurm = {
        "ENGINE": "slurm", "SHARDS": "3", "SCRATCH": str(tmp_path / "scratch"), "SLURM_CONF": slurm.conf,
        "ARTIFACTS": str(tmp_path / "artifacts"),
    }  # fmt: skip
    there = run_json("eval", **asked, **on_slurm)
    here = run_json("eval", **asked, ENGINE="local", ARTIFACTS=str(tmp_path / "here"))
    assert "divergence Q8_0 shard 2 of 3" in there["ran"] and "divergence Q8_0" in there["ran"]
    assert _divergences(there) == _divergences(here)
    record = json.loads(Path(there["manifest"]).read_text())["stages"]["divergence Q8_0"]
    assert len(record["shard_nodes"]) == 3 and all(node["cpu"] for node in record["shard_nodes"])
    assert run_json("eval", **asked, **on_slurm | {"SHARDS": "2"})["ran"] == []


def _divergences(made: dict[str, Any]) -> list[Any]:
    evaluations = json.loads(Path(made["manifest"]).read_text())["evaluations"]
    return [without_times(m["divergence"]) for report in evaluations.values() for m in report["measurements"]]
