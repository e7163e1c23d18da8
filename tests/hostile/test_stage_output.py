"""What a stage leaves is hostile: a real process that lies, results of chance, and what is left by a killed run."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quantyard.engines import Engine
from quantyard.engines.lines import MAX_LINE_BYTES, OutputLines
from quantyard.engines.local import LocalEngine
from quantyard.engines.stage_io import StageListener
from quantyard.errors import QuantyardError, ResultRefused
from quantyard.protocol.allowed_outputs import stage_allowed_files
from quantyard.protocol.base import ExitCode, FileEntry, Progress, StageResult
from quantyard.protocol.builder import DequantizeRequest
from quantyard.protocol.stage_result import parse_stage_result
from quantyard.requests import RunEnvironment
from quantyard.store.artifact import ModelId
from quantyard.store.stages import ModelStore
from quantyard.store.visible_files import copy_stored_outputs
from tests.hostile.lies import Attack, names
from tests.hostile.sampling import rounds, sampled

COMMIT = "c" * 40


def _local(package: Path) -> Engine:
    """ENGINE=local with this Python, and the liar's package in the place of ours."""
    repo = package.parent
    python = repo / ".venv-local" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (repo / ".venv-local" / ".ready").write_text("")
    script = repo / "scripts" / "setup-local.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return LocalEngine(RunEnvironment(repo_dir=repo))


@pytest.mark.parametrize("lie", sampled(names(), 36))
def test_a_stage_that_lies_is_refused_in_seconds_and_nothing_else_is_touched(lie: str, tmp_path: Path) -> None:
    if "device" in lie and os.getuid() != 0:
        pytest.skip("only root makes devices")
    Attack(tmp_path, _local).check(lie)


def test_a_child_that_leaves_its_group_does_not_keep_the_build_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantyard.engines.local._STOP_S", 0.5)
    attack = Attack(tmp_path, _local)
    builder = attack.prepare("nothing but the truth")
    liar = tmp_path / "package" / "builder" / "dequantize.py"
    leave = "subprocess.Popen(['sleep', '60'], start_new_session=True)"
    liar.write_text(liar.read_text().replace("    LIES[lie](liar)\n", f"    LIES[lie](liar)\n    {leave}\n"))
    started = time.monotonic()
    builder.run(_Silent())
    assert time.monotonic() - started < 20  # the child stays for 60 s


class _Silent:
    """A reporter that hears nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args: None


# ---- a result of chance ------------------------------------------------------------------------------------------

HONEST: dict[str, Any] = {
    "contract": 1, "stage": "dequantize", "exit_code": 0, "duration_s": 0.1, "error": None,
    "outputs": [{"path": "config.json", "size_bytes": 2, "sha256": None}], "facts": {"n_params": 7, "more": [1, {}]},
    "tools": {"llama.cpp": "1"}, "argv": [["a", "b"]],
}  # fmt: skip
NASTY: list[Any] = [
    None, True, -1, 2**63, 2**64, 10**400, 1e300, float("nan"), float("inf"), "", "\ud800", "\x1b[2J", "a" * 5000,
    "../x", "/etc/passwd", "a/../b", "a\0b", ".", [], {}, [[]], {"": None}, {"a": {"a": {"a": {}}}},
]  # fmt: skip


def _changed(value: Any, chance: random.Random) -> Any:
    """The value with something nasty somewhere in it."""
    if chance.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return chance.choice(NASTY)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = chance.choice(list(copy)) if isinstance(copy, dict) else chance.randrange(len(copy))
    copy[key] = _changed(copy[key], chance)
    return copy


def _damaged(text: bytes, chance: random.Random) -> bytes:
    """The text with a few bytes removed, doubled or changed."""
    out = bytearray(text)
    for _ in range(min(len(out), chance.randint(1, 4))):
        at, n = chance.randrange(max(1, len(out))), chance.randint(1, 8)
        out[at : at + n] = chance.choice([b"", bytes(out[at : at + n]) * 2, chance.randbytes(n), b'"', b"{", b"NaN"])
    return bytes(out)


def test_a_result_of_chance_is_taken_whole_or_refused(tmp_path: Path) -> None:
    chance, store = random.Random(14), ModelStore(tmp_path, ModelId("org", "name", COMMIT))
    sys.set_int_max_str_digits(0)
    taken = longest = 0
    for number in range(rounds(sample=400, whole=6000)):
        text = json.dumps(_changed(HONEST, chance)).encode()
        text = _damaged(text, chance) if number % 2 else text
        try:
            result = parse_stage_result(text)
        except ValueError as error:
            longest = max(longest, len(str(error)))
            continue
        space = store.begin("dequantize", "0" * 64, DequantizeRequest(source_file="a"), {}, resumable=False)
        (space.out_dir / "files").mkdir()
        (space.out_dir / "files" / "config.json").write_text("{}")
        try:
            finished = store.finish("dequantize", "0" * 64, space, result, stage_allowed_files("config.json")(None))
        except ResultRefused:
            continue
        taken += 1
        assert finished.artifact.files[0].size_bytes == 2
        json.loads((finished.artifact.folder.parent / "result.json").read_text(), parse_constant=pytest.fail)
    assert taken > 0 and longest < 1000
    sys.set_int_max_str_digits(4300)


# ---- what is printed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b"x" * 65536, b"x\n" * 32768, b"\n" * 65536, b"\xff\xfe" * 32768], ids=len)
def test_lines_take_time_by_their_bytes_and_hold_a_bounded_number_of_them(block: bytes) -> None:
    lines, longest, started = OutputLines(), 0, time.monotonic()
    for _ in range(400):  # 26 MB
        longest = max((len(line) for line in lines.feed(block)), default=longest)
    assert longest <= MAX_LINE_BYTES and all(len(line) <= MAX_LINE_BYTES for line in lines.end())
    assert time.monotonic() - started < 20


def test_a_line_that_is_cut_off_has_its_beginning_and_the_next_is_whole() -> None:
    lines = OutputLines()
    assert list(lines.feed(b"a" * 100_000)) == []
    assert [line[:3] for line in lines.feed(b"a\nnext\nla")] == ["aaa", "nex"]
    assert list(lines.end()) == ["la"]


@pytest.mark.parametrize("changes", [
    {"done": 10**400}, {"done": 2**63}, {"done": -1}, {"done": True}, {"done": "1"}, {"done": 1.5}, {"total": 10**30},
    {"unit": "\x1b[2J"}, {"unit": "apples"}, {"stage": "convert"}, {"stage": 1}, {"event": "other"}, {"more": 1},
])  # fmt: skip
def test_progress_that_no_stage_of_ours_prints_is_a_line_like_any_other(changes: dict[str, Any]) -> None:
    sys.set_int_max_str_digits(0)
    told: list[Progress] = []
    listener = StageListener("dequantize", told.append)
    line = {"event": "progress", "stage": "dequantize", "done": 1, "total": 2, "unit": "bytes"}
    listener.on_stdout(json.dumps(line | changes))
    assert told == [] and "progress" in listener.tail + "progress"
    listener.on_stdout(json.dumps(line))
    assert [progress.done for progress in told] == [1]
    sys.set_int_max_str_digits(4300)


# ---- what a killed run left --------------------------------------------------------------------------------------


def _left(store: ModelStore) -> Path:
    """The folder that a resumable run was killed in."""
    space = store.begin("fetch", "1" * 64, DequantizeRequest(source_file="a"), {}, resumable=True)
    (space.out_dir / "files" / ".partial").mkdir(parents=True)
    (space.out_dir / "files" / ".partial" / "good").write_text("half")
    store.leave(space)  # as if its process had been killed
    return space.out_dir


def _begin(store: ModelStore) -> Path:
    return store.begin("fetch", "1" * 64, DequantizeRequest(source_file="a"), {}, resumable=True).out_dir


@pytest.mark.parametrize("name", ["result.json", "request.json", "files/a", "files/.partial/b", "scratch", "kept"])
@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "dangling link", "loop", "FIFO", "folder"])
def test_what_a_killed_run_left_is_resumed_from_plain_files_alone(name: str, kind: str, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "folder").mkdir(parents=True)
    (host / "folder" / "file").write_text("theirs")
    (host / "victim").write_text("theirs")
    store = ModelStore(tmp_path / "store", ModelId("org", "name", COMMIT))
    path = _left(store) / name
    targets = {"link to a file": host / "victim", "link to a folder": host / "folder", "dangling link": "none"}
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(targets.get(kind, path.name))
    assert store.partial_bytes("fetch", "1" * 64) == len("half")
    out = _begin(store)
    path = out / name  # the attempt has a folder of its own
    assert (out / "files" / ".partial" / "good").read_text() == "half"
    if kind == "folder" and name.startswith("files/"):
        assert path.is_dir()
    else:
        assert not os.path.lexists(path)
    assert (host / "victim").read_text() == "theirs" and (host / "folder" / "file").read_text() == "theirs"


def test_a_hard_link_that_a_killed_run_left_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("theirs")
    store = ModelStore(tmp_path / "store", ModelId("org", "name", COMMIT))
    os.link(tmp_path / "victim", _left(store) / "files" / "model.gguf")
    assert not (_begin(store) / "files" / "model.gguf").exists()


@pytest.mark.parametrize("name", ["in", "kept", "home"])
def test_what_lies_beside_the_folder_of_a_killed_run_is_made_anew(name: str, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", ModelId("org", "name", COMMIT))
    beside = _left(store).with_name(name)
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "request.json").write_text("theirs")
    if beside.exists():
        beside.rename(tmp_path / "moved")
    beside.symlink_to(tmp_path / "host")
    out = _begin(store)
    assert (out / "files" / ".partial" / "good").exists() and not out.with_name(name).is_symlink()
    assert (tmp_path / "host" / "request.json").read_text() == "theirs"


@pytest.mark.parametrize("what", ["out is a link", "files is a link", "too deep"])
def test_where_nothing_can_be_kept_of_a_killed_run_it_begins_anew(what: str, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", ModelId("org", "name", COMMIT))
    out = _left(store)
    (tmp_path / "host" / "files").mkdir(parents=True)
    (tmp_path / "host" / "files" / "theirs").write_text("theirs")
    if what == "too deep":
        (out / "files" / "/".join("d" * 60)).mkdir(parents=True)
    else:
        path = out if what == "out is a link" else out / "files"
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "host" / ("" if what == "out is a link" else "files"))
    out = _begin(store)
    assert list(out.iterdir()) == [] and not out.is_symlink()
    assert (tmp_path / "host" / "files" / "theirs").read_text() == "theirs"


# ---- what is read of a finished stage ----------------------------------------------------------------------------


def _finished(store: ModelStore, content: str = "{}") -> Path:
    """A finished stage's folder `files`."""
    space = store.begin("dequantize", "2" * 64, DequantizeRequest(source_file="a"), {}, resumable=False)
    (space.out_dir / "files" / "sub").mkdir(parents=True)
    (space.out_dir / "files" / "config.json").write_text(content)
    (space.out_dir / "files" / "sub" / "x").write_text(content)
    outputs = tuple(FileEntry(path=path, size_bytes=len(content)) for path in ("config.json", "sub/x"))
    result = StageResult(stage="dequantize", exit_code=ExitCode.DONE, outputs=outputs)
    return store.finish(
        "dequantize", "2" * 64, space, result, stage_allowed_files("config.json", "sub/x")(None)
    ).artifact.folder


def test_a_link_in_a_finished_stage_is_neither_counted_nor_published(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", ModelId("org", "name", COMMIT))
    files = _finished(store)
    found = store.finished("dequantize", "2" * 64)
    assert found is not None
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "x").write_text("it")
    (files / "sub" / "x").unlink()
    (files / "sub").rmdir()
    (files / "sub").symlink_to(tmp_path / "host")
    assert store.finished("dequantize", "2" * 64) is None and "link" in store.changed[0]
    with pytest.raises((QuantyardError, ValueError)):
        copy_stored_outputs(found.artifact, store.folder / "eval")
    assert not (store.folder / "eval").exists()


def test_a_file_whose_bytes_were_changed_does_not_count_and_one_that_was_only_touched_does(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", ModelId("org", "name", COMMIT))
    files = _finished(store)
    os.utime(files / "config.json", ns=(1, 1))
    assert store.finished("dequantize", "2" * 64) is not None
    (files / "config.json").write_text("[]")
    assert store.finished("dequantize", "2" * 64) is None
    assert store.changed == [f"{files.parent.name}: config.json was changed after it was made"]


def test_a_stage_of_before_there_were_stamps_counts_until_a_file_is_younger_than_its_result(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store", ModelId("org", "name", COMMIT))
    files = _finished(store)
    (files.parent / "stamps.json").unlink()
    assert store.finished("dequantize", "2" * 64) is not None and not (files.parent / "stamps.json").exists()
    (files / "sub" / "x").write_text("[]")
    os.utime(files / "sub" / "x", ns=(2**62, 2**62))
    assert store.finished("dequantize", "2" * 64) is None
