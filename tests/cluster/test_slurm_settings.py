"""What a user sets for jobs stands in the job as Slurm shows it, and no secret stands anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.slurm_nodes import DIR, SlurmNodes, wait_until
from tests.cluster.test_slurm_build import asked  # noqa: F401  (a fixture)
from tests.conftest import run, run_json, start

pytestmark = pytest.mark.usefixtures("local_tools")
LATER = "--begin=now+1hour"  # so that nothing runs
SECRET = "hf_" + "s3cr3t" * 5
HIDDEN = {
    "HF_TOKEN": SECRET, "HTTPS_PROXY": "http://me:s3cr3t-word@127.0.0.1:9", "AWS_SECRET_ACCESS_KEY": "s3cr3t-key",
    "SBATCH_EXPORT": "ALL", "SLURM_EXPORT_ENV": "ALL",  # a site may set them for all of its users
}  # fmt: skip
MEASURING = "tasks: []\nneeds_network: false\ndivergence: {n_chunks: 1, n_ctx: 128}\nspeed: {repeats: 1}\n"


def waiting_jobs(slurm: SlurmNodes, command: str, count: int, **asked: str) -> list[dict[str, str]]:  # noqa: F811
    """The first jobs of a command, as Slurm shows them while they wait, and their script; then they are cancelled."""
    driver = start(command, **asked | HIDDEN | {"SLURM_OPTIONS": f"{LATER} --nice=7 --mail-type=NONE"})
    try:
        wait_until(lambda: len(slurm.jobs("PENDING")) >= count or driver.poll() is not None, 60)
        jobs = slurm.jobs("PENDING")
        shown = [slurm.call("scontrol", "--oneliner", "show", "job", job) for job in jobs]
        scripts = [slurm.call("scontrol", "write", "batch_script", job, "-") for job in jobs]
        kept = [path.read_bytes() for path in (DIR / "state").rglob("*") if path.is_file()]
        assert jobs and not any(b"s3cr3t" in text for text in (*map(str.encode, (*shown, *scripts)), *kept))
        slurm.call("scancel", *jobs)
        _, said = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert "cancelled by somebody else" in said
    return [dict(re.findall(r"(\S+?)=(\S*)", text)) for text in shown]


def no_secret_below(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".gguf"]
    return not any(b"s3cr3t" in path.read_bytes() for path in files)


def test_each_setting_of_a_job_is_what_slurm_shows(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    chosen = {
        "SLURM_PARTITION": "short", "SLURM_ACCOUNT": "lab", "SLURM_CONSTRAINT": "rack2", "SLURM_TIME": "30m",
        "SLURM_CPUS_PER_STAGE": "1", "MEMORY": "1GiB",
    }  # fmt: skip
    (job,) = waiting_jobs(slurm, "build", 1, **asked, **chosen)
    assert {name: job[name] for name in ("Partition", "Account", "Features", "TimeLimit", "NumCPUs", "Requeue")} == {
        "Partition": "short", "Account": "lab", "Features": "rack2", "TimeLimit": "00:30:00", "NumCPUs": "1",
        "Requeue": "1",
    }  # fmt: skip
    assert job["MinMemoryNode"] == "1G" and job["Nice"] == "7" and "TresPerNode" not in job
    assert job["Comment"] == "quantyard" and job["JobName"].startswith("quantyard-")
    assert no_secret_below(Path(asked["ARTIFACTS"]))


def test_the_shorter_of_the_partitions_limit_and_the_stages_is_asked_for(
    slurm: SlurmNodes, asked: dict[str, str]  # noqa: F811
) -> None:  # fmt: skip
    (job,) = waiting_jobs(slurm, "build", 1, **asked, SLURM_PARTITION="short")
    assert job["TimeLimit"] == "01:00:00"


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("SLURM_PARTITION", "none", "SLURM_PARTITION=name"), ("SLURM_CONSTRAINT", "moon", "SLURM_CONSTRAINT=name"),
        ("SLURM_OPTIONS", "--reservation=none", "sinfo"), ("SLURM_OPTIONS", "--partition=short", "SLURM_PARTITION"),
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
    jobs = {job["JobName"].split("-")[1]: job for job in waiting_jobs(slurm, "eval", 2, **asked, **one_cpu)}
    assert {name: job["OverSubscribe"] for name, job in jobs.items()} == {"divergence": "OK", "speed": "NO"}
    assert all(job["TresPerNode"].startswith("gres") and job["TresPerNode"].endswith("gpu:1") for job in jobs.values())
    assert no_secret_below(Path(asked["ARTIFACTS"]))
