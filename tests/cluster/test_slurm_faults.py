"""What dies while a build runs on Slurm: the driver, a daemon, a node. The build ends as if nothing had died."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_nodes import SlurmNodes, driving, wait_until
from tests.cluster.test_slurm_build import asked, digests, stages  # noqa: F401  (`asked` is a fixture)
from tests.conftest import run, run_json

pytestmark = [
    pytest.mark.usefixtures("local_tools"), pytest.mark.slow, pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="kills daemons and mounts folders, which needs root"),
]  # fmt: skip
BAD_REQUEST_CODE, ENGINE_CODE = 2, 6


@pytest.fixture(autouse=True)
def all_up(slurm: SlurmNodes) -> Iterator[None]:
    """Every daemon runs and both nodes take jobs, before a test and after it."""
    slurm.mend()
    yield
    slurm.mend()


@contextlib.contextmanager
def building(slurm: SlurmNodes, asked: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:  # noqa: F811
    """A build whose first stage runs: the driver, and the job."""
    with driving(slurm, "build", **asked) as driver:
        wait_until(lambda: stage_of(asked), 120)
        yield driver, slurm.jobs("RUNNING")[0]


def test_ctrl_c_cancels_the_jobs_of_this_run_and_no_others(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    options = ("--job-name=quantyard-other", "--mem=100M", "--output=/dev/null", "--wrap=sleep 300")
    other = slurm.call("sbatch", "--parsable", *options).strip()
    try:
        with building(slurm, asked) as (driver, _):
            began = time.monotonic()
            driver.send_signal(signal.SIGINT)
            _, said = driver.communicate(timeout=20)
            assert time.monotonic() - began < 5 and driver.returncode == 130, said
            wait_until(lambda: slurm.jobs() == [other], 15)
    finally:
        slurm.call("scancel", other)


def test_a_killed_driver_loses_nothing_and_the_next_run_takes_its_job(
    slurm: SlurmNodes, asked: dict[str, str]  # noqa: F811
) -> None:  # fmt: skip
    with building(slurm, asked) as (driver, job):
        driver.kill()
        driver.wait()
        made = run_json("build", **asked)
    assert stages(made)["convert"]["ran_by"]["job"] == f"slurm {job}"


def test_a_job_that_somebody_cancels_ends_the_build_and_says_so(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    with building(slurm, asked) as (driver, job):
        slurm.call("scancel", job)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == ENGINE_CODE and f"job {job} was cancelled by somebody else" in said
    assert run_json("build", **asked)["files"]


@pytest.mark.parametrize("daemon", ["ctld", "slurmd", "slurmstepd"])
def test_a_killed_daemon_of_slurm_does_not_end_the_build(
    slurm: SlurmNodes, asked: dict[str, str], daemon: str  # noqa: F811
) -> None:  # fmt: skip
    with building(slurm, asked) as (driver, job):
        node = slurm.node_of(job)
        if daemon == "slurmstepd":
            os.kill(stepd_of(slurm, job), signal.SIGKILL)
        else:
            os.kill(slurm.pid("ctld" if daemon == "ctld" else node), signal.SIGKILL)
            time.sleep(5)
            slurm.script("start", "ctld" if daemon == "ctld" else node)
        out, said = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    assert ".gguf" in out
    wait_until(lambda: not slurm.jobs(), 30)


def test_a_lost_node_sends_the_job_to_the_other(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    with building(slurm, asked) as (driver, job):
        node = slurm.node_of(job)
        os.kill(slurm.pid(node), signal.SIGKILL)
        for pid in (stepd_of(slurm, job), *processes_of(job, asked)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, said = driver.communicate(timeout=300)
        slurm.script("start", node)
    assert driver.returncode == 0, said


def test_two_nodes_that_both_commit_after_a_cut_link_have_one_result(
    slurm: SlurmNodes, asked: dict[str, str], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    with building(slurm, asked) as (driver, job):
        first, held = slurm.node_of(job), stage_of(asked)
        try:
            for pid in held:
                os.kill(pid, signal.SIGSTOP)
            slurm.script("cut", first)  # for longer than SlurmdTimeout: the job is started again on the other node
            wait_until(lambda: set(stage_of(asked)) - set(held) and slurm.node_of(job) not in ("", first), 240)
        finally:
            for pid in held:
                os.kill(pid, signal.SIGCONT)
        _, said = driver.communicate(timeout=300)
        slurm.script("join", first)
    assert driver.returncode == 0, said
    made = run_json("build", **asked)
    here = run_json("build", **asked | {"ENGINE": "local", "ARTIFACTS": str(tmp_path / "here")})
    assert made["ran"] == [] and digests(made) == digests(here)
    assert "with other bytes" not in said


def test_a_full_disk_of_one_node_is_avoided(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    scratch = Path(asked["SCRATCH"])
    scratch.mkdir()
    in_node1 = ["nsenter", "-t", str(slurm.pid("node1")), "-m"]
    subprocess.run([*in_node1, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(scratch)], check=True)
    try:
        made = run_json("build", **asked)
        assert {record["ran_by"]["host"] for record in stages(made).values()} == {"node2"}
        slurm.call("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
        done = run("build", **asked | {"QUANT": "Q4_0"})
        assert done.returncode == 5
        assert "has" in done.stderr and "free, and the stage needs" in done.stderr and "SCRATCH=/path" in done.stderr
    finally:
        slurm.call("scontrol", "update", "nodename=node2", "state=resume")
        subprocess.run([*in_node1, "umount", "-l", str(scratch)], check=True)
    assert run_json("build", **asked | {"QUANT": "Q4_0"})["files"]


def test_a_node_that_may_not_write_the_shared_folder_says_so(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    store = Path(asked["ARTIFACTS"]) / "shared"
    store.mkdir(parents=True)
    forbid = f"mount --bind {store} {store} && mount -o remount,ro,bind {store}"
    for node in ("node1", "node2"):
        subprocess.run(["nsenter", "-t", str(slurm.pid(node)), "-m", "sh", "-c", forbid], check=True)
    try:
        done = run("build", **asked | {"STORE": str(store)})
        assert done.returncode == BAD_REQUEST_CODE, done.stderr
        assert f"The shared store {store} refuses uid" in done.stderr and f"ls -ldn {store}" in done.stderr
        machine = {name: asked[name] for name in ("ENGINE", "ARTIFACTS", "SCRATCH", "SLURM_CONF")}
        found = run("doctor", **machine, STORE=str(store))
        assert found.returncode != 0
    finally:
        for node in ("node1", "node2"):
            subprocess.run(["nsenter", "-t", str(slurm.pid(node)), "-m", "umount", "-l", str(store)], check=True)
    assert run_json("build", **asked | {"STORE": str(store)})["files"]


def test_a_silent_controller_is_named_and_nothing_is_lost(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    slurm.script("stop", "ctld")
    try:
        done = run("build", **asked)
    finally:
        slurm.script("start", "ctld")
    assert done.returncode == ENGINE_CODE
    assert "controller does not answer" in done.stderr and "scontrol ping" in done.stderr


def test_no_token_stands_in_a_job_a_spec_or_a_log(slurm: SlurmNodes, asked: dict[str, str]) -> None:  # noqa: F811
    secret = "hf_" + "s3cr3t" * 5
    hidden = {"HF_TOKEN": secret, "HTTPS_PROXY": "http://me:s3cr3t-word@127.0.0.1:9"}
    with building(slurm, asked | hidden) as (driver, job):
        shown = slurm.call("scontrol", "show", "job", job)
        script = slurm.call("scontrol", "write", "batch_script", job, "-")
        environments = b"".join(Path(f"/proc/{pid}/environ").read_bytes() for pid in processes_of(job, asked))
        driver.communicate(timeout=240)
    written = [path for path in Path(asked["ARTIFACTS"]).rglob("*") if path.is_file() and path.suffix != ".gguf"]
    files = [path.read_bytes() for path in written]
    files += [path.read_bytes() for path in (slurm.folder / "log").iterdir()]
    for text in (shown.encode(), script.encode(), environments, *files):
        assert b"s3cr3t" not in text


def stepd_of(slurm: SlurmNodes, job: str) -> int:
    """The slurmstepd of a job."""
    found = list[int]()

    def is_there() -> bool:
        found[:] = [pid for pid, words in slurm.processes() if words.startswith(f"slurmstepd: [{job}.")]
        return bool(found)

    wait_until(is_there)
    return found[0]


def processes_of(job: str, asked: dict[str, str]) -> list[int]:  # noqa: F811
    """The processes of a job: `node run`, and the stage in its scratch folder."""
    mine = [pid for pid, words in processes() if asked["SCRATCH"] in words]  # another cluster may have such a job too
    node = [pid for pid in mine if f"SLURM_JOB_ID={job}\0".encode() in environment_of(pid)]
    return node + stage_of(asked)


def stage_of(asked: dict[str, str]) -> list[int]:  # noqa: F811
    """The process of a stage that runs on a node."""
    return [pid for pid, words in processes() if "-m builder." in words and f"{asked['SCRATCH']}/work/" in words]


def processes() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def environment_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""
