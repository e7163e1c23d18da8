"""A two-node Slurm on this machine, made by scripts/cluster-debian.sh, and what its tests ask of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from quantyard.paths import REPO_DIR
from tests.conftest import start

SCRIPT = REPO_DIR / "scripts" / "cluster-debian.sh"
_AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
_UP_TIMEOUT_S = 300  # with the packages to install


@dataclass(frozen=True)
class SlurmNodes:
    """The cluster that is up: its id, and its configuration."""

    id: str
    conf: str

    @property
    def folder(self) -> Path:
        """Of its state, its logs and the numbers of its processes."""
        return Path(self.conf).parent

    def call(self, *argv: str) -> str:
        """The output of one of Slurm's commands."""
        run = subprocess.run(
            argv, env=os.environ | {"SLURM_CONF": self.conf}, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return run.stdout

    def script(self, *argv: str) -> None:
        """One of the script's verbs: `stop node1`, `start ctld`, `cut node2` …"""
        subprocess.run(_script(self.id, *argv), capture_output=True, text=True, timeout=60, check=True)

    def jobs(self, state: str = "") -> list[str]:
        """The ids of our jobs that wait or run, or those of one state."""
        said = self.call("squeue", "--noheader", "--format=%i|%j", *([f"--states={state}"] if state else []))
        return [line.partition("|")[0] for line in said.splitlines() if "|quantyard-" in line]

    def mend(self) -> None:
        """Start what does not run, and have both nodes take jobs."""
        self.mend_daemons()
        self.resume()
        idle = ("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N")
        wait_until(lambda: len(set(self.call(*idle).split())) == 2, 60)

    def resume(self) -> None:
        """Have both nodes take jobs."""
        for node in ("node1", "node2"):
            state = self.call("sinfo", "--noheader", f"--nodes={node}", "--format=%T")
            if "down" in state or "drain" in state:
                with contextlib.suppress(subprocess.CalledProcessError):  # it has come back by itself
                    self.call("scontrol", "update", f"nodename={node}", "state=resume")

    def mend_daemons(self) -> None:
        """Start those that do not run."""
        for daemon in ("ctld", "node1", "node2"):
            with contextlib.suppress(FileNotFoundError):
                if Path(f"/proc/{self.pid(daemon)}").exists():
                    continue
            self.script("start", daemon)

    def processes(self) -> Iterator[tuple[int, str]]:
        """What runs on its nodes, which are network namespaces, with the command line: not those of other clusters."""
        nodes = {path.stat().st_ino for path in Path("/run/netns").glob(f"qynode{self.id}-*")}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if (path.with_name("ns") / "net").stat().st_ino in nodes:
                    yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")

    def pid(self, daemon: str) -> int:
        """The process of ctld, node1 or node2."""
        return int((self.folder / "pid" / daemon).read_text())

    def node_of(self, job: str) -> str:
        """Where a job runs."""
        return self.call("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()


@contextlib.contextmanager
def driving(slurm: SlurmNodes, command: str, **asked: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs beside the test. At the end it is killed if it still runs, and its jobs are cancelled."""
    driver = start(command, **asked)
    try:
        yield driver
    finally:
        driver.kill()
        driver.communicate()
        if left := slurm.jobs():
            slurm.call("scancel", *left)


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.1)


def _script(cluster_id: str, *argv: str) -> list[str]:
    """The command of a verb; `sudo` passes no environment on."""
    return [*_AS_ROOT, "env", f"CLUSTER_ID={cluster_id}", str(SCRIPT), *argv]


def _up(cluster_id: str) -> str:
    """Bring a cluster up; its configuration."""
    run = subprocess.run(
        _script(cluster_id, "up"), capture_output=True, text=True, timeout=_UP_TIMEOUT_S, check=False
    )
    if run.returncode != 0 and os.environ.get("REQUIRE_DOCKER") != "1":
        pytest.skip(f"no Slurm: {run.stderr[-500:]}")
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().rpartition("SLURM_CONF=")[2]


def _claimed_id() -> str:
    run = subprocess.run(_script("0", "claim"), capture_output=True, text=True, timeout=60, check=False)
    if run.returncode != 0:
        pytest.skip(f"no Slurm: {run.stderr[-500:]}")
    return run.stdout.strip()


@pytest.fixture(scope="session")
def slurm(run_folder: Path) -> Iterator[SlurmNodes]:
    """A cluster of this run of the tests: brought up by the first that asks, and taken down by the last. CLUSTER_ID
    names one to use instead, which stays up if it was.
    """
    known = run_folder / "slurm-users.json"
    with FileLock(run_folder / "slurm.lock"):
        users, cluster_id, conf, stays = json.loads(known.read_text()) if known.exists() else (0, "", "", False)
        if users == 0:
            if cluster_id := os.environ.get("CLUSTER_ID", ""):
                stays = subprocess.run(_script(cluster_id, "status"), capture_output=True, timeout=60).returncode == 0
            cluster_id = cluster_id or _claimed_id()
            conf = _up(cluster_id)
        known.write_text(json.dumps([users + 1, cluster_id, conf, stays]))
    yield SlurmNodes(cluster_id, conf)
    with FileLock(run_folder / "slurm.lock"):
        users, *_ = json.loads(known.read_text())
        known.write_text(json.dumps([users - 1, cluster_id, conf, stays]))
        if users == 1 and not stays:
            subprocess.run(_script(cluster_id, "down"), capture_output=True, timeout=60, check=False)
