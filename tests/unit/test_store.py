"""The store's promises: locks, links, hashes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from quantyard.files.atomic import write_file_atomically
from quantyard.files.unique_names import host_in_names
from quantyard.paths import REPO_DIR
from quantyard.store.artifact import ModelId
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore

_HOLD = """
import sys, time
from pathlib import Path
from quantyard.store.artifact import ModelId
from quantyard.store.stages import ModelStore
store = ModelStore(Path(sys.argv[1]), ModelId("org", "name", "c" * 40))
with store.locked(lambda holder: None):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _hold(root: Path, seconds: float) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(REPO_DIR)}
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(root), str(seconds)], stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_build_of_a_model_waits_and_says_for_whom(tmp_path: Path) -> None:
    waited: list[str] = []
    with _hold(tmp_path, 1.0) as holder:
        started = time.monotonic()
        with ModelStore(tmp_path, ModelId("org", "name", "d" * 40)).locked(waited.append):
            assert time.monotonic() - started > 0.2
    assert waited == [f"process {holder.pid} on {host_in_names()}"]


def test_another_model_does_not_wait(tmp_path: Path) -> None:
    waited: list[str] = []
    with _hold(tmp_path, 30) as holder:
        with ModelStore(tmp_path, ModelId("org", "other", "c" * 40)).locked(waited.append):
            pass
        holder.kill()
    assert waited == []


def test_a_killed_build_does_not_hold_its_lock(tmp_path: Path) -> None:
    with _hold(tmp_path, 60) as holder:
        holder.kill()
    waited: list[str] = []
    with ModelStore(tmp_path, ModelId("org", "name", "c" * 40)).locked(waited.append):
        pass
    assert waited == []


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_file_atomically(tmp_path / "manifest.json", b"old")
    write_file_atomically(tmp_path / "manifest.json", b"new")
    assert (tmp_path / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    path, hashed = tmp_path / "weights", []

    def compute(what: Path) -> str:
        hashed.append(what)
        return str(len(hashed))

    path.write_text("one")
    assert HashCache(tmp_path / "cache.json").sha256(path, compute) == "1"
    assert HashCache(tmp_path / "cache.json").sha256(path, compute) == "1"
    path.write_text("two, longer")
    assert HashCache(tmp_path / "cache.json").sha256(path, compute) == "2"


def test_a_damaged_hash_cache_is_started_anew(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text("{ half")
    (tmp_path / "weights").write_text("one")
    assert HashCache(tmp_path / "cache.json").sha256(tmp_path / "weights", lambda _path: "hash") == "hash"
