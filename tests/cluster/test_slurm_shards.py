"""Measurements of the demo in shards on two nodes of a real Slurm have the numbers of one run on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from quantyard.paths import REPO_DIR
from tests.cluster.slurm_nodes import SlurmNodes
from tests.cluster.test_slurm_demo import measured
from tests.conftest import lend, run_json

pytestmark = [pytest.mark.usefixtures("local_tools"), pytest.mark.slow, pytest.mark.alone]
TASKS: Final = """
include_path: smoke
tasks: [{task: smoke_questions, limit: 30}, {task: smoke_generation, limit: 20}]
divergence: {n_chunks: 5, n_ctx: 128}
speed: null
"""
CHUNKS: Final = "tasks: []\nneeds_network: false\ndivergence: {n_chunks: 5, n_ctx: 128}\nspeed: null\n"
STAGES: Final = {"tasks": ("evaluate", "divergence"), "chunks": ("divergence",)}


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both suites."""
    folder = tmp_path_factory.mktemp("suites")
    shutil.copytree(REPO_DIR / "eval" / "suites" / "smoke", folder / "smoke")
    (folder / "tasks.yaml").write_text(TASKS)
    (folder / "chunks.yaml").write_text(CHUNKS)
    return folder


@pytest.fixture(scope="module")
def here(demo_source: Path, suites: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What one run on this machine made and measured, by suite, and its artifacts."""
    artifacts = tmp_path_factory.mktemp("here")
    found = {
        suite: run_json("eval", **_asked(demo_source, suites, suite), ENGINE="local", ARTIFACTS=str(artifacts))
        for suite in STAGES
    }
    return artifacts, found


def _asked(model: Path, suites: Path, suite: str) -> dict[str, str]:
    return {"MODEL": str(model), "QUANT": "Q8_0", "SUITE": str(suites / f"{suite}.yaml"), "THREADS": "1"}


@pytest.mark.parametrize(("suite", "count"), [("tasks", 1), ("tasks", 2), ("tasks", 4), ("chunks", 5)])
def test_measurements_in_shards_on_slurm_are_those_of_one_run_here(
    slurm: SlurmNodes, demo_source: Path, suites: Path, here: tuple[Path, dict[str, Any]], tmp_path: Path, suite: str,
    count: int,
) -> None:  # fmt: skip
    lend(here[0], tmp_path / "there", "convert", "quantize", "verify")
    asked = _asked(demo_source, suites, suite) | {
        "ENGINE": "slurm", "SHARDS": str(count), "SCRATCH": str(tmp_path / "scratch"), "SLURM_CONF": slurm.conf,
        "ARTIFACTS": str(tmp_path / "there"),
    }  # fmt: skip
    there = run_json("eval", **asked)
    for stage in STAGES[suite]:
        shards = [label for label in there["ran"] if label.startswith(f"{stage} Q8_0 shard ")]
        assert len(shards) == (count if count > 1 else 0) and f"{stage} Q8_0" in there["ran"]
        record = json.loads(Path(there["manifest"]).read_text())["stages"][f"{stage} Q8_0"]
        assert len(record.get("shard_nodes", ())) == len(shards)
    assert not [label for label in there["ran"] if label.split()[0] in ("convert", "quantize", "verify")]
    assert measured(there["report"]) == measured(here[1][suite]["report"])
    if count == 2:
        assert run_json("eval", **asked | {"SHARDS": "3"})["ran"] == []
