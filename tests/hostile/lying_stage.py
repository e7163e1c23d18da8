"""A stage that lies: `python -m builder.dequantize` of an engine under attack. Standard library only, so that it runs
in any image; which lie it tells stands in the file `lie` beside it.

It plays `dequantize`, which must leave `config.json` and may leave more, one folder deep.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECRET = "secret of the host"
NESTED = "additional_chat_templates/x.jinja"


class Liar:
    """Where it writes, and what it will say. `host` is a folder of the host that it has no business with."""

    def __init__(self, out: Path, host: Path) -> None:
        self.out, self.host, self.files = out, host, out / "files"
        self.exit_code, self.writes_result = 0, True
        self.result: dict[str, Any] = {
            "contract": 1, "stage": "dequantize", "exit_code": 0, "outputs": [], "facts": {"n_params": 7}, "tools": {},
            "argv": [], "duration_s": 0.1, "error": None,
        }
        self.files.mkdir(exist_ok=True)
        self.leave("config.json", b"{}")

    def leave(self, name: str, content: bytes) -> Path:
        """Write a file and name it, truly."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.name(name, len(content), hashlib.sha256(content).hexdigest())
        return path

    def name(self, name: str, size: Any, sha256: Any = None) -> None:
        """Name a file in the result."""
        self.result["outputs"] = [entry for entry in self.result["outputs"] if entry["path"] != name]
        self.result["outputs"].append({"path": name, "size_bytes": size, "sha256": sha256})

    def say(self, text: str | bytes) -> None:
        """Write this as the result."""
        self.writes_result = False
        (self.out / "result.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    def text(self, **changes: Any) -> str:
        """The result as JSON."""
        return json.dumps(self.result | changes)

    def replace(self, path: Path, make: Callable[[Path], Any]) -> None:
        """Put something else in a file's place."""
        path.unlink(missing_ok=True)
        make(path)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def _result_is(make: Callable[[Liar, Path], Any]) -> Callable[[Liar], None]:
    def lie(liar: Liar) -> None:
        liar.writes_result = False
        make(liar, liar.out / "result.json")

    return lie


def _config_is(make: Callable[[Liar, Path], Any]) -> Callable[[Liar], None]:
    return lambda liar: liar.replace(liar.files / "config.json", lambda path: make(liar, path))


def _files_is(make: Callable[[Liar, Path], Any]) -> Callable[[Liar], None]:
    def lie(liar: Liar) -> None:
        (liar.files / "config.json").unlink()
        liar.files.rmdir()
        make(liar, liar.files)

    return lie


def _nested_is(make: Callable[[Liar, Path], Any]) -> Callable[[Liar], None]:
    """The folder of a file that is two levels down."""

    def lie(liar: Liar) -> None:
        liar.name(NESTED, len(SECRET), hashlib.sha256(SECRET.encode()).hexdigest())
        make(liar, (liar.files / NESTED).parent)

    return lie


def _said(**changes: Any) -> Callable[[Liar], None]:
    return lambda liar: liar.say(liar.text(**changes))


def _with(old: str, new: str) -> Callable[[Liar], None]:
    """The true result with one piece of text changed."""
    def lie(liar: Liar) -> None:
        text = liar.text()
        assert old in text, text
        liar.say(text.replace(old, new, 1))

    return lie


def _entry(**changes: Any) -> Callable[[Liar], None]:
    def lie(liar: Liar) -> None:
        liar.result["outputs"][0] |= changes

    return lie


def _sparse(size: int) -> Callable[[Liar], None]:
    def lie(liar: Liar) -> None:
        with (liar.files / "model.safetensors").open("wb") as stream:
            stream.truncate(size)
        liar.name("model.safetensors", size)

    return lie


def _ends(code: int, *, writes: bool = False, says: str = "") -> Callable[[Liar], None]:
    def lie(liar: Liar) -> None:
        liar.exit_code, liar.writes_result = code, writes
        sys.stderr.write(says)

    return lie


def _prints(*lines: str, times: int = 1, stream: str = "stdout") -> Callable[[Liar], None]:
    def lie(_liar: Liar) -> None:
        where = getattr(sys, stream)
        for _ in range(times):
            for line in lines:
                where.write(line)
        where.flush()

    return lie


def _progress(**changes: Any) -> str:
    told = {"event": "progress", "stage": "dequantize", "done": 1, "total": 2, "unit": "tensors"}
    return json.dumps(told | changes) + "\n"


def _hard_link(liar: Liar) -> None:
    victim = liar.host / "victim"
    liar.replace(liar.files / "config.json", lambda path: os.link(victim, path))
    liar.name("config.json", len(SECRET))


def _mode(mode: int) -> Callable[[Liar], None]:
    return lambda liar: (liar.files / "config.json").chmod(mode)


def _device(liar: Liar, path: Path) -> None:
    del liar
    os.mknod(path, 0o20666, os.makedev(1, 5))


def _stays(liar: Liar) -> None:
    """A child that keeps the streams open, and a file that it changes later."""
    path = str(liar.files / "config.json")
    late = f"import time\nwith open({path!r}, 'r+') as f:\n  time.sleep(1)\n  f.write('[]')\ntime.sleep(60)"
    subprocess.Popen([sys.executable, "-c", late])
    time.sleep(0.3)


def _deep_folders(liar: Liar) -> None:
    os.chdir(liar.files)
    for _ in range(1500):
        Path("d").mkdir()
        os.chdir("d")


def _locked_folders(liar: Liar) -> None:
    (liar.files / "a" / "b").mkdir(parents=True)
    (liar.files / "a").chmod(0)


# To add a lie: add a row, and in lies.py what becomes of it.
LIES: dict[str, Callable[[Liar], None]] = {
    "nothing but the truth": lambda _liar: None,
    # ---- links and special files
    "request.json is a link": lambda liar: (liar.out / "request.json").symlink_to(liar.host / "victim"),
    "request.json is a folder": lambda liar: (liar.out / "request.json").mkdir(),
    "stamps.json is a link": lambda liar: (liar.out / "stamps.json").symlink_to(liar.host / "victim"),
    "kept beside out is a link": lambda liar: (liar.out / "kept").symlink_to(liar.host),
    "result.json is a link": _result_is(lambda liar, path: path.symlink_to(liar.host / "result.json")),
    "result.json is a dangling link": _result_is(lambda _liar, path: path.symlink_to("nowhere")),
    "result.json is a link to itself": _result_is(lambda _liar, path: path.symlink_to(path.name)),
    "result.json is /dev/zero": _result_is(lambda _liar, path: path.symlink_to("/dev/zero")),
    "result.json is a folder": _result_is(lambda _liar, path: path.mkdir()),
    "result.json is a FIFO": _result_is(lambda _liar, path: _fifo(path)),
    "result.json is a socket": _result_is(lambda _liar, path: _socket(path)),
    "files is a link to a host folder": _files_is(lambda liar, path: path.symlink_to(liar.host)),
    "files is a dangling link": _files_is(lambda _liar, path: path.symlink_to("nowhere")),
    "files is a link to itself": _files_is(lambda _liar, path: path.symlink_to(path.name)),
    "files is a link to another folder of its own": _files_is(
        lambda liar, path: ((liar.out / "other").mkdir(), (liar.out / "other" / "config.json").write_text("{}"),
                            path.symlink_to("other"))
    ),
    "files is a file": _files_is(lambda _liar, path: path.write_text("")),
    "files is a FIFO": _files_is(lambda _liar, path: _fifo(path)),
    "files is gone": _files_is(lambda _liar, _path: None),
    "an output is a link to a host file": _config_is(lambda liar, path: path.symlink_to(liar.host / "config.json")),
    "an output is a link to another output": lambda liar: (
        liar.leave("a.json", b"{}"), liar.replace(liar.files / "config.json", lambda path: path.symlink_to("a.json")),
    )[0] and None,
    "an output is a dangling link": _config_is(lambda _liar, path: path.symlink_to("nowhere")),
    "an output is a link to itself": _config_is(lambda _liar, path: path.symlink_to(path.name)),
    "an output is /dev/zero": _config_is(lambda _liar, path: path.symlink_to("/dev/zero")),
    "an output is a folder": _config_is(lambda _liar, path: path.mkdir()),
    "an output is a FIFO": _config_is(lambda _liar, path: _fifo(path)),
    "an output is a socket": _config_is(lambda _liar, path: _socket(path)),
    "an output is a device": _config_is(_device),
    "an output is a hard link to a host file": _hard_link,
    "an output has two names": lambda liar: os.link(liar.files / "config.json", liar.files / "b.json"),
    "an output's folder is a link to a host folder": _nested_is(lambda liar, path: path.symlink_to(liar.host)),
    "an output's folder is a dangling link": _nested_is(lambda _liar, path: path.symlink_to("nowhere")),
    "an output's folder is a link to itself": _nested_is(lambda _liar, path: path.symlink_to(path.name)),
    "an output's folder is a file": _nested_is(lambda _liar, path: path.write_text("")),
    "an output's folder is a FIFO": _nested_is(lambda _liar, path: _fifo(path)),
    "links that nobody names": lambda liar: (liar.files / "x").symlink_to(liar.host),
    "folders 1,500 deep that nobody names": _deep_folders,
    "folders that cannot be opened": _locked_folders,
    "an output is setuid": _mode(0o6755),
    "an output is for everybody to write": _mode(0o1777),
    "an output that nobody may read": _mode(0o000),
    # ---- sizes, hashes and names
    "an output of a terabyte of holes": _sparse(1 << 40),
    "an output is larger": _entry(size_bytes=1),
    "an output is smaller": _entry(size_bytes=1 << 40),
    "an output has another SHA-256": _entry(sha256="0" * 64),
    "an output has no SHA-256": _entry(sha256=None),
    "an output is missing": lambda liar: (liar.files / "config.json").unlink(),
    "an output is not named": _said(outputs=[]),
    "an output that was not asked for": lambda liar: liar.leave("payload.sh", b"") and None,
    "an output two folders down": lambda liar: liar.leave("a/b/config.json", b"") and None,
    "a file that is not named": lambda liar: (liar.files / "payload.sh").write_text("") and None,
    "an output twice": lambda liar: liar.result["outputs"].append(liar.result["outputs"][0]),
    "an absolute path": lambda liar: liar.name(str(liar.host / "victim"), len(SECRET)),
    "a path upwards": lambda liar: liar.name("../result.json", 1),
    "a path of 5,000 characters": lambda liar: liar.name("a" * 5000 + ".json", 0),
    "a path with an escape": lambda liar: liar.leave("a\x1b[2J.json", b"{}") and None,
    "a path with a line end": lambda liar: liar.leave("config.json\n", b"{}") and None,
    "200,000 outputs": lambda liar: liar.result["outputs"].extend(
        {"path": f"{n}.json", "size_bytes": 0, "sha256": None} for n in range(200_000)
    ),
    "30,000 outputs": lambda liar: liar.result["outputs"].extend(
        {"path": f"{n}.json", "size_bytes": 0} for n in range(30_000)
    ),
    # ---- fields of the result
    "the result of another stage": _said(stage="convert"),
    "the result of no stage": _said(stage=""),
    "another exit code": _said(exit_code=5),
    "an exit code that is text": _said(exit_code="0"),
    "an exit code that is a truth": _said(exit_code=False),
    "an exit code that is none": _said(exit_code=1),
    "an exit code of 400 digits": _with('"exit_code": 0', f'"exit_code": {"9" * 400}'),
    "NaN as a fact": _with('"n_params": 7', '"n_params": NaN'),
    "infinity as a fact": _with('"n_params": 7', '"n_params": -Infinity'),
    "1e999 as a fact": _with('"n_params": 7', '"x": 1e999'),
    "1e300 as a fact": _with('"n_params": 7', '"x": {"y": [1e300]}'),
    "400 digits as a fact": _with('"n_params": 7', f'"x": {"9" * 400}'),
    "2**64 as a fact": _with('"n_params": 7', f'"x": {2**64}'),
    "a fact that is text": _with('"n_params": 7', '"n_params": "many"'),
    "a fact that is negative": _with('"n_params": 7', '"n_params": -7'),
    "a fact that is a fraction": _with('"n_params": 7', '"n_params": 7.5'),
    "a fact that is a truth": _with('"n_params": 7', '"n_params": true'),
    "half a surrogate": _with('"n_params": 7', '"x": "\\ud800"'),
    "half a surrogate in a path": _with('"path": "config.json"', '"path": "\\udc80.json"'),
    "a key twice": _with('"stage": "dequantize"', '"stage": "convert", "stage": "dequantize"'),
    "an unknown field": _said(more=1),
    "facts that are a list": _said(facts=[1]),
    "tools that are numbers": _said(tools={"llama.cpp": 1}),
    "tools without end": _said(tools={str(n): "" for n in range(10_000)}),
    "a command that is text": _said(argv="rm"),
    "a command of a megabyte": _said(argv=[["x" * 1_000_000]]),
    "a duration that is text": _said(duration_s="1"),
    "a duration that is NaN": _with('"duration_s": 0.1', '"duration_s": NaN'),
    "a duration that is negative": _said(duration_s=-1),
    "a duration beyond time": _said(duration_s=1e300),
    "nested 100,000 deep": _with('"n_params": 7', f'"x": {"[" * 100_000}{"]" * 100_000}'),
    "nested 50 deep": _with('"n_params": 7', f'"x": {"[" * 50}{"]" * 50}'),
    "facts of 300 kB": _said(facts={"x": "y" * 300_000}),
    "facts of 20 MB": _said(facts={"x": "y" * 20_000_000}),
    "an empty result": lambda liar: liar.say(""),
    "half a result": lambda liar: liar.say(liar.text()[:50]),
    "a result of zeros": lambda liar: liar.say(bytes(1000)),
    "a result that is a list": lambda liar: liar.say("[]"),
    "a result in UTF-16": lambda liar: liar.say(liar.text().encode("utf-16")),
    "a result of holes": _result_is(lambda _liar, path: (path.touch(), os.truncate(path, 1 << 40))),
    # ---- how it ends
    "no result": _ends(0),
    "no result and exit code 1": _ends(1),
    "no result and exit code 3": _ends(3, says="it broke"),
    "no result and exit code 5": _ends(5, says="No space left on device"),
    "a good result and exit code 3": _ends(3, writes=True),
    "a child that stays": _stays,
    # ---- what it prints
    "100 MB without a line end": _prints("x" * 1_000_000, times=100),
    "100 MB without a line end for people": _prints("x" * 1_000_000, times=100, stream="stderr"),
    "300,000 lines of progress": _prints(_progress(), times=300_000),
    "300,000 lines for people": _prints("line\n", times=300_000, stream="stderr"),
    "progress that lies": _prints(
        _progress(done=int("9" * 400)), _progress(done=-1), _progress(total=2**63), _progress(done="1"),
        _progress(done=1.5), _progress(unit="\x1b[2J"), _progress(stage="convert"), _progress(more=1),
        _progress().replace("1", "NaN"), "{" * 900 + "\n", '{"a":' * 150 + "\n", "\xff\n",
    ),
}  # fmt: skip


def main() -> None:
    """Tell the lie."""
    sys.set_int_max_str_digits(0)
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("/out"))
    args, _ = parser.parse_known_args()
    lie, host = Path(__file__).with_name("lie").read_text().split("\n")
    liar = Liar(args.out, Path(host))
    LIES[lie](liar)
    if liar.writes_result:
        (liar.out / "result.json").write_text(json.dumps(liar.result))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(liar.exit_code)


if __name__ == "__main__":
    main()
