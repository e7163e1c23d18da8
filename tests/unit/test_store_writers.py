"""Several processes write one store at once: attempts, finished stages, the manifest, locks for a moment."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantyard.errors import BadRequest
from quantyard.files import lock_file
from quantyard.files.lock_file import held_lock_file
from quantyard.files.renameat2 import replace_folder
from quantyard.files.unique_names import ProcessMark, host_in_names, new_process_mark
from quantyard.paths import REPO_DIR
from quantyard.protocol.allowed_outputs import stage_allowed_files
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.protocol.builder import DequantizeRequest
from quantyard.store.artifact import FinishedStage, ModelId, Workspace
from quantyard.store.manifest import read_manifest
from quantyard.store.stages import ModelStore
from tests.manifests import manifest_of

MODEL, KEY, LABEL = ModelId("org", "name", "c" * 40), "1" * 64, "dequantize"
ENV = os.environ | {"PYTHONPATH": str(REPO_DIR)}

_WRITER = """
import hashlib, sys
from pathlib import Path
from tests.unit.test_store_writers import MODEL, begun, ended
from quantyard.store.stages import ModelStore
store, text, resumable = ModelStore(Path(sys.argv[1]), MODEL), sys.argv[2], len(sys.argv) > 3
space = begun(store, text, resumable)
print(space.folder, flush=True)
sys.stdin.readline()
print(ended(store, space, text).artifact.digest, flush=True)
"""
_CHANGER = """
import sys, time
from pathlib import Path
from quantyard.store.manifest import changing_manifest, read_manifest, write_manifest
path, name = Path(sys.argv[1]), sys.argv[2]
for number in range(15):
    with changing_manifest(path):
        manifest = read_manifest(path)
        time.sleep(0.002)
        manifest.source.dtypes[f"{name}{number}"] = number
        write_manifest(path, manifest)
"""


def begun(store: ModelStore, text: str, resumable: bool = False) -> Workspace:
    """An attempt of this process, its output written."""
    space = store.begin(LABEL, KEY, DequantizeRequest(source_file="a"), {}, resumable)
    (space.out_dir / "files").mkdir(exist_ok=True)
    (space.out_dir / "files" / "config.json").write_text(text)
    return space


def ended(store: ModelStore, space: Workspace, text: str) -> FinishedStage:
    output = FileEntry(path="config.json", size_bytes=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())
    result = StageResult(stage=LABEL, exit_code=0, outputs=(output,))
    return store.finish(LABEL, KEY, space, result, stage_allowed_files("config.json")(None))


def _start(script: str, *argv: object, cwd: Path = REPO_DIR) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, argv)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=ENV, cwd=cwd,
    )  # fmt: skip


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _end(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    return out.strip()


@pytest.mark.commands
@pytest.mark.parametrize("texts", [("same", "same"), ("one", "two")], ids=["same", "differing"])
def test_two_processes_begin_a_stage_at_once_and_lose_no_work(texts: tuple[str, str], tmp_path: Path) -> None:
    with _start(_WRITER, tmp_path, texts[0]) as first:
        own = Path(_line(first))
        with _start(_WRITER, tmp_path, texts[1]) as second:
            assert Path(_line(second)) != own and (own / "out/files/config.json").read_text() == texts[0]
            digests = [_end(first), _end(second)]
    assert digests[0] == digests[1], "the first result is that of both"
    store = ModelStore(tmp_path, MODEL)
    assert (found := store.finished(LABEL, KEY)) and (found.artifact.folder / "config.json").read_text() == texts[0]
    assert not list(store.folder.glob("stages/.*"))
    aside = [path.read_text() for path in store.folder.glob("differing/*/files/config.json")]
    assert aside == ([] if texts[0] == texts[1] else [texts[1]])


def test_who_ends_second_with_other_bytes_is_told_where_they_are(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, MODEL)
    first, second = begun(store, "one"), begun(store, "two")
    ended(store, first, "one")
    assert ended(store, second, "two").artifact == ended(store, begun(store, "one"), "one").artifact
    (told,) = store.differing
    assert "other bytes" in told and Path(told.rpartition(" ")[2], "files/config.json").read_text() == "two"


_AGAIN = """
import sys
from pathlib import Path
from tests.unit.test_store_writers import MODEL, begun, ended
from quantyard.store.stages import ModelStore
store = ModelStore(Path(sys.argv[1]), MODEL)
ended(store, begun(store, "one"), "one")
print("ready", flush=True)
for _ in range(60):
    ended(store, begun(store, "one"), "one")
"""


@pytest.mark.commands
def test_a_finished_stage_is_never_missed_while_another_process_finishes_it_again(tmp_path: Path) -> None:
    with _start(_AGAIN, tmp_path) as writer:
        assert _line(writer) == "ready"
        missed = polls = 0
        while writer.poll() is None:
            missed += ModelStore(tmp_path, MODEL).finished(LABEL, KEY) is None
            polls += 1
    assert writer.returncode == 0 and polls > 10 and missed == 0


def test_a_stage_whose_file_was_changed_is_replaced(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, MODEL)
    folder = ended(store, begun(store, "one"), "one").artifact.folder
    (folder / "config.json").write_text("changed")
    assert store.finished(LABEL, KEY) is None
    ended(store, begun(store, "one"), "one")
    assert (folder / "config.json").read_text() == "one" and not store.differing
    assert [path.name for path in folder.parent.parent.iterdir()] == [folder.parent.name]


@pytest.mark.commands
def test_a_killed_attempt_is_resumed_and_a_running_one_is_not(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, MODEL)
    with _start(_WRITER, tmp_path, "half", "resumable") as other:
        theirs = Path(_line(other))
        assert store.partial_bytes(LABEL, KEY) == 0
        store.clear_unfinished([])
        own = store.begin(LABEL, KEY, DequantizeRequest(source_file="a"), {}, resumable=True)
        assert theirs.is_dir() and not list(own.out_dir.iterdir())
        store.discard(own)
        other.kill()
    assert store.partial_bytes(LABEL, KEY) == len("half")
    own = store.begin(LABEL, KEY, DequantizeRequest(source_file="a"), {}, resumable=True)
    assert not theirs.exists() and (own.out_dir / "files/config.json").read_text() == "half"
    store.leave(own)
    store.clear_unfinished([LABEL])
    assert own.folder.is_dir()
    store.clear_unfinished([])
    assert not own.folder.exists()


def _elsewhere(store: ModelStore, age_s: float) -> Path:
    """An attempt of a process on another host, whose folder was touched so long ago."""
    path = store.folder / "stages" / f".{LABEL}-{KEY[:12]}.{ProcessMark('node-7', 1, 'a' * 12)}"
    (path / "out/files").mkdir(parents=True)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize(("age_s", "stays"), [(600, True), (7200, False)])
def test_an_attempt_of_another_host_is_abandoned_when_untouched(age_s: float, stays: bool, tmp_path: Path) -> None:
    store = ModelStore(tmp_path, MODEL)
    path = _elsewhere(store, age_s)
    store.clear_unfinished([])
    assert path.exists() == stays


def test_the_unfinished_stage_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, MODEL)
    left = store.folder / "stages" / f".{LABEL}-{KEY[:12]}" / "out" / "files"
    left.mkdir(parents=True)
    (left / "config.json").write_text("half")
    assert store.partial_bytes(LABEL, KEY) == 4
    space = store.begin(LABEL, KEY, DequantizeRequest(source_file="a"), {}, resumable=True)
    assert (space.out_dir / "files/config.json").read_text() == "half" and not left.exists()


@pytest.mark.commands
def test_changes_of_the_manifest_by_three_processes_all_stay(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(manifest_of().model_dump_json())
    changers = [_start(_CHANGER, path, name) for name in "abc"]
    assert [_end(changer) for changer in changers] == ["", "", ""]
    manifest = read_manifest(path)
    assert manifest and {f"{name}{number}" for name in "abc" for number in range(15)} <= set(manifest.source.dtypes)
    assert [each.name for each in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(("holder", "age_s"), [
    (str(ProcessMark(host_in_names(), 2**22 + 1, "a" * 12)), 0), (str(ProcessMark("node-7", 1, "a" * 12)), 120),
    ("", 120),
], ids=["gone", "of another host", "damaged"])  # fmt: skip
def test_a_lock_file_whose_holder_was_killed_is_taken(holder: str, age_s: float, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(holder)
    os.utime(path, (time.time() - age_s,) * 2)
    with held_lock_file(path):
        assert path.read_text().startswith(host_in_names())
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_is_held_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "_WAIT_S", 0.05)
    holder = new_process_mark()
    (tmp_path / "lock").write_text(str(holder))
    with pytest.raises(BadRequest, match=str(holder)), held_lock_file(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").read_text() == str(holder)


def test_a_folder_is_replaced_and_the_old_one_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text(str(number))
        replace_folder(tmp_path / "new", tmp_path / "target", tmp_path / "old")
        assert (tmp_path / "target" / "file").read_text() == str(number)
    assert (tmp_path / "old" / "file").read_text() == "1" and not (tmp_path / "new").exists()
