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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.contract import StageResult
from pipeline.machine import memory_bytes
from pipeline.manifest import read_manifest
from pipeline.schedule import SIDE_BY_SIDE, room_of
from pipeline.settings import REPO_DIR
from pipeline.stage import sha256_of
from tests.conftest import run_json, start

QUANTS = "Q4_K_M,Q8_0"
EXAMPLE = REPO_DIR / "docs" / "examples" / "own-questions"
LITTLE = "divergence: {n_chunks: 1, n_ctx: 128}\nspeed: {repeats: 1, prompt_tokens: 64, generated_tokens: 8}\n"
LONGEST_PAUSE_S = 3.0
KILLS = 20
RUN_TIMEOUT_S = 300.0
GONE_WITHIN_S = 20.0
pytestmark = pytest.mark.slow


@dataclass
class Killed:
    """One matrix, the kills it went through, and what was seen after each."""

    asked: dict[str, str]
    rng: random.Random
    hashes: dict[tuple[str, int, int], str] = field(default_factory=dict)  # by path, inode and time of change
    finished: dict[str, int] = field(default_factory=dict)  # stage folder → inode, as it was when first seen
    n_kills: int = 0
    lost: list[list[str]] = field(default_factory=list)  # by kill: the stages that ran and were not finished
    at: list[int] = field(default_factory=list)  # by kill: how many stages were finished

    @property
    def artifacts(self) -> Path:
        return Path(self.asked["ARTIFACTS"])

    def stages(self, pattern: str) -> list[Path]:
        return sorted(path for path in self.artifacts.glob(f"local/*/*/stages/{pattern}") if path.is_dir())

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
            self.lost.append(self._on_their_way(began))
            self.at.append(len(self.stages("[!.]*")))
        return hit

    def _on_their_way(self, began: float) -> list[str]:
        return [path.name for path in self.stages(".*") if _began_after(path, began)]

    def _wait_for_a_moment(self, process: subprocess.Popen[str], began: float) -> bool:
        enough = len(self.stages("[!.]*")) + self.rng.choice((0, 0, 1))
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while process.poll() is None and (len(self.stages("[!.]*")) < enough or not self._on_their_way(began)):
            assert time.monotonic() < deadline, "no stage was begun or finished"
            time.sleep(0.01)
        try:
            process.wait(self.rng.uniform(0, LONGEST_PAUSE_S))
        except subprocess.TimeoutExpired:
            return True
        return False

    def check_store(self) -> None:
        """Every file of every stage that counts has the hash its result names, and none was ever made again."""
        for folder in self.stages("[!.]*"):
            assert self.finished.setdefault(folder.name, folder.stat().st_ino) == folder.stat().st_ino, folder
            result = StageResult.model_validate_json((folder / "result.json").read_bytes())
            for entry in result.outputs:
                assert self._sha256(folder / "files" / entry.path) == entry.sha256, entry.path
        assert not set(self.finished) - {folder.name for folder in self.stages("[!.]*")}, "one has vanished"
        for path in self.artifacts.glob("local/*/*/manifest.json"):
            manifest = read_manifest(path)
            assert manifest is not None
            for record in manifest.quants.values():
                assert self._sha256(path.parent / record.file) == record.sha256
        assert not list(self.artifacts.rglob("*unreadable*"))

    def _sha256(self, path: Path) -> str:
        mark = str(path), path.stat().st_ino, path.stat().st_mtime_ns
        if mark not in self.hashes:
            self.hashes[mark] = sha256_of(path)
        return self.hashes[mark]


def _began_after(partial: Path, when: float) -> bool:
    """Whether the stage that works in this folder was begun since; what it makes must not be there already."""
    request = partial / "in" / "request.json"
    return request.exists() and request.stat().st_mtime >= when and not partial.with_name(partial.name[1:]).exists()


def _processes_in(folder: Path) -> list[str]:
    """Command lines of the other processes that work in this folder or were told of it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            works_in = str((entry / "cwd").readlink())
        except OSError:  # it has ended meanwhile
            continue
        if works_in.startswith(str(folder)) or str(folder) in line:
            found.append(line)
    return found


def _containers_in(folder: Path) -> list[str]:
    """Names of the containers whose stage writes below this folder."""
    form = '{{.Names}} {{.Label "quantyard.out"}}'
    listed = subprocess.run(["docker", "ps", "--format", form], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if line.partition(" ")[2].startswith(str(folder))]


def _assert_nothing_is_left_over(look: Callable[[Path], list[str]], folder: Path) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := look(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture
def matrix(demo_model: Path, tmp_path: Path) -> Iterator[Killed]:
    """A matrix that has not begun."""
    shutil.copytree(EXAMPLE, tmp_path / "suite")
    suite = tmp_path / "suite" / "suite.yaml"
    suite.write_text(suite.read_text().split("divergence:")[0] + LITTLE)
    asked = {
        "MODEL": str(demo_model), "QUANTS": QUANTS, "SUITE": str(suite), "LIMIT": "2", "IMATRIX": "none",
        "ARTIFACTS": str(tmp_path / "artifacts"),
    }
    yield Killed(asked, random.Random(21))
    shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)


def _assert_ends_whole(matrix: Killed) -> None:
    """The run that nobody kills: it finishes what is left, and all of it is there and right."""
    before = len(matrix.stages("[!.]*"))
    made: dict[str, Any] = run_json("matrix", **matrix.asked)
    matrix.check_store()
    assert [file["quant"] for file in made["files"]] == QUANTS.split(",") and made["failed"] == []
    manifest = json.loads(Path(made["manifest"]).read_text())
    assert all(len(measured["measurements"]) == 3 for measured in manifest["evaluations"].values())
    assert len(matrix.stages("[!.]*")) == before + len(made["ran"]), "a stage ran twice"
    assert run_json("matrix", **matrix.asked)["ran"] == []


def _assert_little_was_lost(matrix: Killed) -> None:
    """A kill costs what ran at that moment: one stage, or small ones that shared the machine's time."""
    slots = room_of(memory_bytes(), os.cpu_count() or 1).slots
    for names in matrix.lost:
        shared = [name for name in names if name[1:].partition("-")[0] in SIDE_BY_SIDE]
        assert len(names) <= 1 or (names == shared and len(names) <= slots), names
    assert len(set(matrix.at)) >= matrix.n_kills // 4, f"the kills lie close together: {matrix.at}"


def test_killed_twenty_times_a_matrix_is_never_corrupt_and_a_kill_costs_no_more_than_what_ran(
    matrix: Killed, local_tools: None
) -> None:
    matrix.asked["ENGINE"] = "local"
    while matrix.n_kills < KILLS:
        hit = matrix.start_and_kill()
        _assert_nothing_is_left_over(_processes_in, matrix.artifacts)
        matrix.check_store()
        if not hit:  # it was done: then there is more to measure
            matrix.asked["LIMIT"] = str(int(matrix.asked["LIMIT"]) + 1)
    _assert_ends_whole(matrix)
    _assert_little_was_lost(matrix)


def test_killed_in_containers_it_leaves_none_behind_and_goes_on(matrix: Killed, eval_image: str) -> None:
    matrix.asked["ENGINE"] = "docker"
    for _ in range(3):
        assert matrix.start_and_kill()
        _assert_nothing_is_left_over(_containers_in, matrix.artifacts)
        matrix.check_store()
    _assert_ends_whole(matrix)
    _assert_little_was_lost(matrix)
