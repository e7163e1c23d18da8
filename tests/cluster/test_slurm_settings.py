"""What a user sets for jobs stands in the job as Slurm shows it, and no secret stands anywhere."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.cluster.slurm_nodes import SlurmNodes
from tests.cluster.test_slurm_build import asked  # noqa: F401  (a fixture)
from tests.conftest import run, run_json, start

pytestmark = pytest.mark.usefixtures("local_tools")
LATER = "--begin=now+1hour"  # so that nothing runs
SECRET = "hf_" + "s3cr3t" * 5
HIDDEN = {
    "HF_TOKEN": SECRET, "HTTPS_PROXY": "http://me:s3cr3t-word@127.0.0.1:9", "AWS_SECRET_ACCESS_KEY": "s3cr3t-key",
    "SBATCH_EXPORT": "ALL", "SLURM_EXPORT_ENV": "ALL",  # a site may set them for all of its users
}  # fmt: skip
MEASURING = "tasks: []\nneeds_network: false\ndivergence: false\nspeed: {repeats: 1}\n"


def waiting_jobs(slurm: SlurmNodes, command: str, *stages: str, **asked: str) -> dict[str, dict[str, str]]:  # noqa: F811
    """The jobs of these stages, as Slurm shows them while they wait; then all of the command are cancelled."""
    driver = start(command, **asked | HIDDEN | {"SLURM_OPTIONS": f"{LATER} --nice=7 --mail-type=NONE"})
    found, until = dict[str, dict[str, str]](), time.monotonic() + 90
    try:
        while driver.poll() is None and time.monotonic() < until:  # one that ends badly does not end others
            found |= shown_jobs(slurm)
            if set(stages) <= set(found) and (jobs := slurm.jobs()):
                slurm.call("scancel", *jobs)
            time.sleep(0.5)
        _, said = driver.communicate(timeout=1)
    finally:
        driver.kill()
        if left := slurm.jobs():
            slurm.call("scancel", *left)
    assert set(stages) <= set(found) and "cancelled by somebody else" in said, said
    return found


def shown_jobs(slurm: SlurmNodes) -> dict[str, dict[str, str]]:
    """What Slurm shows of each job of ours that waits, by its stage. No secret is in it, its script or its state."""
    jobs = slurm.jobs("PENDING")
    shown = [slurm.call("scontrol", "--oneliner", "show", "job", job) for job in jobs]
    scripts = [slurm.call("scontrol", "write", "batch_script", job, "-") for job in jobs]
    kept = [path.read_bytes() for path in (slurm.folder / "state").rglob("*") if path.is_file()]
    assert not any(b"s3cr3t" in text for text in (*map(str.encode, (*shown, *scripts)), *kept))
    fields = [dict(re.findall(r"(\S+?)=(\S*)", text)) for text in shown]
    return {job["JobName"].split("-")[1]: job for job in fields}


def no_secret_below(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".gguf"]
    return not any(b"s3cr3t" in path.read_bytes() for path in files)


def test_each_setting_of_a_job_is_what_slurm_shows(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    chosen = {
        "SLURM_PARTITION": "short", "SLURM_ACCOUNT": "lab", "SLURM_CONSTRAINT": "rack2", "SLURM_TIME": "30m",
        "SLURM_CPUS_PER_STAGE": "1", "MEMORY": "1GiB",
    }  # fmt: skip
    job = waiting_jobs(slurm, "build", "convert", **asked, **chosen)["convert"]
    assert {name: job[name] for name in ("Partition", "Account", "Features", "TimeLimit", "NumCPUs", "Requeue")} == {
        "Partition": "short", "Account": "lab", "Features": "rack2", "TimeLimit": "00:30:00", "NumCPUs": "1",
        "Requeue": "1",
    }  # fmt: skip
    assert job["MinMemoryNode"] == "1G" and job["Nice"] == "7" and "TresPerNode" not in job
    assert job["Comment"] == "quantyard" and job["JobName"].startswith("quantyard-")
    assert no_secret_below(Path(asked["ARTIFACTS"]))


@pytest.mark.slow
def test_the_shorter_of_the_partitions_limit_and_the_stages_is_asked_for(
    slurm: SlurmNodes, asked: dict[str, str]  # noqa: F811
) -> None:  # fmt: skip
    job = waiting_jobs(slurm, "build", "convert", **asked, SLURM_PARTITION="short")["convert"]
    assert job["TimeLimit"] == "01:00:00"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("SLURM_PARTITION", "none", "SLURM_PARTITION=name"), ("SLURM_CONSTRAINT", "moon", "SLURM_CONSTRAINT=name"),
        ("SLURM_OPTIONS", "--reservation=none", "Correct SLURM_OPTIONS"),
        ("SLURM_OPTIONS", "--bogus=1", "Correct SLURM_OPTIONS"),
        ("SLURM_OPTIONS", "--partition=short", "SLURM_PARTITION"),
    ],
)  # fmt: skip
def test_what_the_cluster_does_not_have_is_refused_with_what_to_set(
    slurm: SlurmNodes, asked: dict[str, str], name: str, value: str, hint: str  # noqa: F811
) -> None:  # fmt: skip
    done = run("build", **asked, **{name: value})
    assert done.returncode in (2, 6) and hint in done.stderr, done.stderr
    assert not slurm.jobs()


@pytest.mark.slow
def test_stages_that_are_timed_have_a_node_alone_and_those_with_layers_on_a_gpu_ask_for_one(
    slurm: SlurmNodes, asked: dict[str, str], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    run_json("build", **asked)
    suite = tmp_path / "own.yaml"
    suite.write_text(MEASURING)
    one_cpu = {"SUITE": str(suite), "SLURM_CPUS_PER_STAGE": "1", "N_GPU_LAYERS": "1"}
    jobs = waiting_jobs(slurm, "eval", "evaluate", "speed", **asked, **one_cpu)
    alone = {name: job["OverSubscribe"] for name, job in jobs.items() if name in ("evaluate", "speed")}
    assert alone == {"evaluate": "OK", "speed": "NO"}
    assert all(job["TresPerNode"].startswith("gres") and job["TresPerNode"].endswith("gpu:1") for job in jobs.values())
    assert no_secret_below(Path(asked["ARTIFACTS"]))
