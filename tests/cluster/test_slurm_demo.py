"""The demo's matrix on two nodes and on this machine alone: the same files, the same numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from tests.cluster.slurm_nodes import SlurmNodes
from tests.cluster.test_slurm_build import digests, stages
from tests.conftest import run_json

pytestmark = [pytest.mark.usefixtures("local_tools"), pytest.mark.slow, pytest.mark.alone]
SUITE = """
include_path: smoke
tasks: [{task: smoke_questions, limit: 6}]
divergence: {n_chunks: 1}
domains: {tokens: 64, long_documents: 0}
behaviour: {suites: [{suite: tool_calls, limit: 1}]}
speed: {prompt_tokens: 32, generated_tokens: 8, repeats: 1}
cache: {types: [q8_0], n_ctx: 256, n_chunks: 1, repeats: 0}
"""
# What differs from run to run, or names the machine.
_ASIDE = ("seconds", "duration", "speed", "hardware", "node", "cpu", "time", "memory", "machine", "energy", "date")


def test_the_demos_matrix_is_the_same_on_two_nodes_and_here(
    slurm: SlurmNodes, demo_source: Path, tmp_path: Path
) -> None:  # fmt: skip
    suite = tmp_path / "small.yaml"
    suite.write_text(SUITE)
    shutil.copytree(REPO_DIR / "eval" / "suites" / "smoke", tmp_path / "smoke")
    asked = {"MODEL": str(demo_source), "QUANTS": "Q4_K_M,Q8_0", "SUITE": str(suite), "IMATRIX": "none", "THREADS": "1"}
    cluster = {"SLURM_CONF": slurm.conf, "SCRATCH": str(tmp_path / "scratch")}
    there = run_json("matrix", **asked, **cluster, ENGINE="slurm", ARTIFACTS=str(tmp_path / "there"))
    here = run_json("matrix", **asked, ENGINE="local", ARTIFACTS=str(tmp_path / "here"))
    assert digests(there) == digests(here)
    assert measured(there["report"]) == measured(here["report"])
    made = {label: stages(found)[label]["outputs"] for found in (there,) for label in stages(found)}
    for label in (label for label in made if label.split()[0] in ("convert", "quantize", "calibrate")):
        assert made[label] == stages(here)[label]["outputs"], label
    assert {record["ran_by"]["host"] for record in stages(there).values()} == {"node1", "node2"}


def measured(value: Any) -> Any:
    """A report without what differs from run to run."""
    if isinstance(value, dict):
        return {key: measured(one) for key, one in value.items() if not any(word in key for word in _ASIDE)}
    return [measured(one) for one in value] if isinstance(value, list) else value
