"""What dies or is stopped while stages that measure run on Slurm: nothing is repeated, and nothing is left running."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm_nodes import SlurmNodes, driving, wait_until
from tests.cluster.test_slurm_build import asked  # noqa: F401  (a fixture)
from tests.cluster.test_slurm_faults import environment_of, processes, processes_of
from tests.conftest import run_json

pytestmark = [pytest.mark.usefixtures("local_tools"), pytest.mark.slow, pytest.mark.alone]
SUITE = """
tasks: []
needs_network: false
divergence: {n_chunks: 8, n_ctx: 256}
domains: {tokens: 256, long_documents: 0}
speed: false
"""


@pytest.fixture
def measuring(slurm: SlurmNodes, asked: dict[str, str], tmp_path: Path) -> dict[str, str]:  # noqa: F811
    """The variables of an evaluation whose files are built already."""
    run_json("build", **asked)
    suite = tmp_path / "own.yaml"
    suite.write_text(SUITE)
    return asked | {"SUITE": str(suite)}


@contextlib.contextmanager
def evaluating(slurm: SlurmNodes, measuring: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], set[str]]]:
    """An evaluation with two stages that run: the driver, and the jobs."""
    with driving(slurm, "eval", **measuring) as driver:
        wait_until(lambda: len(slurm.jobs("RUNNING")) == 2 and len(stages_of(measuring)) == 2, 120)
        yield driver, set(slurm.jobs("RUNNING"))


def test_a_killed_driver_leaves_its_measurements_to_the_next_run(slurm: SlurmNodes, measuring: dict[str, str]) -> None:
    with evaluating(slurm, measuring) as (driver, jobs):
        driver.kill()
        driver.wait()
        made = run_json("eval", **measuring)
    records = json.loads(Path(made["manifest"]).read_text())["stages"]
    assert jobs <= {record["ran_by"]["job"].split()[1] for record in records.values()}
    since = min(map(int, jobs))
    rows = slurm.call("squeue", "--noheader", "--states=all", "--format=%i %j").splitlines()
    names = [row.split()[1] for row in rows if int(row.split()[0]) >= since]
    assert len(names) == len(set(names)), "a stage was submitted twice"
    assert run_json("eval", **measuring)["ran"] == []


def test_ctrl_c_cancels_the_measurements_of_this_run_alone(slurm: SlurmNodes, measuring: dict[str, str]) -> None:
    other = slurm.call("sbatch", "--parsable", "--hold", "--job-name=quantyard-other", "--wrap=true").strip()
    try:
        with evaluating(slurm, measuring) as (driver, _):
            began = time.monotonic()
            driver.send_signal(signal.SIGINT)
            _, said = driver.communicate(timeout=20)
            assert time.monotonic() - began < 5 and driver.returncode == 130, said
            wait_until(lambda: slurm.jobs() == [other], 15)
            wait_until(lambda: not stages_of(measuring), 15)
    finally:
        slurm.call("scancel", other)


def test_no_token_stands_in_what_a_measurement_shows_or_keeps(slurm: SlurmNodes, measuring: dict[str, str]) -> None:
    hidden = {"HF_TOKEN": "hf_" + "s3cr3t" * 5, "HTTPS_PROXY": "http://me:s3cr3t-word@127.0.0.1:9"}
    with evaluating(slurm, measuring | hidden) as (driver, jobs):
        shown = "".join(slurm.call("scontrol", "show", "job", job) for job in jobs)
        shown += "".join(slurm.call("scontrol", "write", "batch_script", job, "-") for job in jobs)
        pids = [pid for job in jobs for pid in processes_of(job, measuring)] + stages_of(measuring)
        environments = b"".join(environment_of(pid) for pid in pids)
        _, said = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    folders = (Path(measuring["ARTIFACTS"]), slurm.folder)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".gguf"]
    assert b"SLURM_JOB_ID" in environments
    for text in (shown.encode(), said.encode(), environments, *(path.read_bytes() for path in files)):
        assert b"s3cr3t" not in text


def stages_of(measuring: dict[str, Any]) -> list[int]:
    """The processes of stages that measure on a node."""
    return [pid for pid, words in processes() if "-m eval." in words and f"{measuring['SCRATCH']}/work/" in words]
