"""A matrix that is killed again and again, for real: what looks finished is whole, and little is done twice.

A kill is SIGKILL to the command, at a seeded random moment: after it has finished a stage, or none, has begun another,
and some more seconds. So the moments lie all over the matrix, however quick the machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantyard.engines.capacity import engine_machine_capacity
from quantyard.execution.scheduler import CONCURRENT_STAGES, concurrency_of
from quantyard.hardware.machine import machine_memory_bytes
from quantyard.paths import REPO_DIR
from tests.conftest import lend, run_json, start
from tests.e2e.conftest import write_example
from tests.hostile.sampling import rounds
from tests.kills import Witness, assert_nothing_is_left_over, containers_in, processes_in

QUANTS = "Q4_K_M,Q8_0"
LITTLE = "divergence: {n_chunks: 1, n_ctx: 128}\nspeed: {repeats: 1, prompt_tokens: 64, generated_tokens: 8}\n"
LONGEST_PAUSE_S = 3.0
KILLS = rounds(sample=4, whole=20)  # scripts/bench_kills.py has a hundred, spread over the stages
RUN_TIMEOUT_S = 300.0


@dataclass
class Killed:
    """One matrix, the kills it went through, and what was seen after each."""

    asked: dict[str, str]
    rng: random.Random
    witness: Witness
    n_kills: int = 0
    lost: list[list[str]] = field(default_factory=list)  # by kill: the stages that ran and were not finished
    at: list[int] = field(default_factory=list)  # by kill: how many stages were finished

    def start_and_kill(self) -> bool:
        """Whether the kill hit a run that was on its way."""
        began = time.time()
        process = start("matrix", **self.asked)
        try:
            hit = self._wait_for_a_moment(process, began)
        finally:
            process.kill()
            process.communicate()
        if hit:
            self.n_kills += 1
            self.lost.append(self.witness.on_their_way(began))
            self.at.append(len(self.witness.stages()))
        return hit

    def _wait_for_a_moment(self, process: subprocess.Popen[str], began: float) -> bool:
        enough = len(self.witness.stages()) + self.rng.choice((0, 0, 1))
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while process.poll() is None and (
            len(self.witness.stages()) < enough or not self.witness.on_their_way(began)
        ):
            assert time.monotonic() < deadline, "no stage was begun or finished"
            time.sleep(0.01)
        try:
            process.wait(self.rng.uniform(0, LONGEST_PAUSE_S))
        except subprocess.TimeoutExpired:
            return True
        return False


@pytest.fixture
def matrix(demo_model: Path, tmp_path: Path) -> Iterator[Killed]:
    """A matrix that has not begun."""
    suite = write_example(tmp_path / "suite", LITTLE)
    asked = {
        "MODEL": str(demo_model), "QUANTS": QUANTS, "SUITE": str(suite), "LIMIT": "2", "IMATRIX": "none",
        "ARTIFACTS": str(tmp_path / "artifacts"),
    }
    yield Killed(asked, random.Random(21), Witness(tmp_path / "artifacts"))
    shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)


def _assert_ends_whole(matrix: Killed) -> None:
    """The run that nobody kills: it finishes what is left, and all of it is there and right."""
    before = len(matrix.witness.stages())
    made: dict[str, Any] = run_json("matrix", **matrix.asked)
    matrix.witness.check()
    assert [file["quant"] for file in made["files"]] == QUANTS.split(",") and made["failed"] == []
    manifest = json.loads(Path(made["manifest"]).read_text())
    assert all(len(measured["measurements"]) == 3 for measured in manifest["evaluations"].values())
    assert len(matrix.witness.stages()) == before + len(made["ran"]), "a stage ran twice"
    assert run_json("matrix", **matrix.asked)["ran"] == []


def _assert_little_was_lost(matrix: Killed) -> None:
    """A kill costs what ran at that moment: one stage, or small ones that shared the machine's time."""
    stages = concurrency_of(engine_machine_capacity("", os.cpu_count() or 1, machine_memory_bytes())).stages
    for names in matrix.lost:
        shared = [name for name in names if name[1:].partition("-")[0] in CONCURRENT_STAGES]
        assert len(names) <= 1 or (names == shared and len(names) <= stages), names
    assert len(set(matrix.at)) >= matrix.n_kills // 4, f"the kills lie close together: {matrix.at}"


def test_killed_many_times_a_matrix_is_never_corrupt_and_a_kill_costs_no_more_than_what_ran(
    matrix: Killed, local_tools: None
) -> None:
    matrix.asked["ENGINE"] = "local"
    while matrix.n_kills < KILLS:
        hit = matrix.start_and_kill()
        assert_nothing_is_left_over(processes_in, matrix.witness.artifacts)
        matrix.witness.check()
        if not hit:  # it was done: then there is more to measure
            matrix.asked["LIMIT"] = str(int(matrix.asked["LIMIT"]) + 1)
    _assert_ends_whole(matrix)
    _assert_little_was_lost(matrix)


@pytest.mark.slow  # of containers, tests/docker/test_faults.py kills one at every change
def test_killed_in_containers_it_leaves_none_behind_and_goes_on(matrix: Killed, eval_image: str) -> None:
    matrix.asked["ENGINE"] = "docker"
    lend(REPO_DIR / "artifacts", matrix.witness.artifacts, "convert")
    for _ in range(rounds(sample=2, whole=5)):
        assert matrix.start_and_kill()
        assert_nothing_is_left_over(containers_in, matrix.witness.artifacts)
        matrix.witness.check()
    _assert_ends_whole(matrix)
    _assert_little_was_lost(matrix)
