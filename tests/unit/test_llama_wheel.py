"""Upstream's own wheel of llama-cpp-python: taken where its hash is recorded, from an index over HTTP; else compiled.

The scripts, locks and index are real. The compiler is not: it takes ten minutes, and here copies a folder. What
upstream's wheel brings is tried by tests/e2e/test_set_up.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quantyard.cli.parser import add_command_options
from quantyard.cli.request import read_command_request
from quantyard.engines.local import LocalEngine
from quantyard.errors import EngineError
from quantyard.formatting.compilation import CompileProgress
from quantyard.paths import REPO_DIR
from quantyard.requests import RunEnvironment
from quantyard.workflows import doctor

pytestmark = pytest.mark.commands

WHEEL = b"a wheel: what is in it does not matter before it is installed"
NAME = f"llama_cpp_python-0.3.36-py3-none-manylinux2014_{platform.machine()}.manylinux_2_17_{platform.machine()}.whl"
# Downloads nothing, builds nothing: a package of each kind, as the real script leaves them.
COMPILER = """#!/usr/bin/env bash
set -e
[[ $1 != --sources ]] || { touch "$2/llama_cpp_python-0.3.36.tar.gz"; exit; }
mkdir -p "$1"
while read -r name _; do
    [[ $name != *==* ]] || echo "$name --hash=sha256:0" >>"$1/compiled.txt"
done <"$(dirname "$0")/../locks/sdists.txt"
"""


@dataclass
class Index:
    """What a server on the loopback interface answers, by path."""

    port: int
    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    delay_s: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/whl"

    def offer(self, content: bytes = WHEEL, name: str = NAME) -> None:
        """An index as PEP 503 describes it."""
        page = f'<!DOCTYPE html><html><a href="../files/old-0.1.whl">old</a><a href="../files/{name}">new</a></html>'
        self.pages["/whl/cpu/llama-cpp-python/"] = (200, page.encode())
        self.pages[f"/whl/cpu/files/{name}"] = (200, content)


@contextmanager
def _served() -> Iterator[Index]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(index.delay_s)
            status, body = index.pages.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index = Index(server.server_port)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield index
    finally:
        server.shutdown()


@pytest.fixture
def index() -> Iterator[Index]:
    with _served() as index:
        yield index


@dataclass
class Checkout:
    """The scripts and locks in a folder of their own, with an empty cache, and no Docker daemon."""

    folder: Path
    index: Index

    def run(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "DOCKER_HOST": "unix:///nowhere.sock",
            "LLAMA_WHEEL_INDEX": self.index.url, "PYTHON": sys.executable, **environment,
        }  # fmt: skip
        script = [self.folder / "scripts" / argv[0], *argv[1:]]
        return subprocess.run(script, env=given, capture_output=True, text=True, timeout=60, check=False)

    def provide(self, **environment: str) -> tuple[Path, str]:
        """The folder of wheels, and what was said."""
        done = self.run("wheels.sh", **environment)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip()), done.stderr

    def plan(self, **environment: str) -> tuple[str, str]:
        """The word and the sentence."""
        done = self.run("wheels.sh", "--plan", **environment)
        assert done.returncode == 0, done.stderr
        word, _, sentence = done.stdout.strip().partition(": ")
        return word, sentence

    def record(self, content: bytes = WHEEL, name: str = NAME) -> None:
        lock = self.folder / "locks/llama-wheels.sha256"
        lock.write_text(f"# a comment\n{hashlib.sha256(content).hexdigest()}  cpu/{name}\n")


@pytest.fixture
def checkout(tmp_path: Path, index: Index) -> Checkout:
    tmp_path /= "a home with spaces"
    for name in ("scripts", "locks", "docker", "quantyard/formatting"):
        shutil.copytree(REPO_DIR / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO_DIR / "versions.env", tmp_path)
    (tmp_path / "docker/compile-wheels.sh").write_text(COMPILER)
    made = Checkout(tmp_path, index)
    made.record()
    index.offer()
    return made


def _is_prebuilt(folder: Path) -> bool:
    return folder.name.startswith("prebuilt-")


def test_a_wheel_whose_hash_is_recorded_is_taken_and_kept(checkout: Checkout, index: Index) -> None:
    sentence = "nothing is compiled: upstream's wheel is downloaded, and its hash compared"
    assert checkout.plan() == ("prebuilt", f"{sentence}: {index.url}/cpu/files/{NAME}")
    folder, said = checkout.provide()
    assert _is_prebuilt(folder) and (folder / NAME).read_bytes() == WHEEL
    assert f"Downloading upstream's wheel from 127.0.0.1:{index.port}" in said and "ompil" not in said
    listed = (folder / "compiled.txt").read_text().splitlines()
    assert listed[-1] == f"llama_cpp_python==0.3.36 --hash=sha256:{hashlib.sha256(WHEEL).hexdigest()}"
    assert len(listed) == 4 and (folder / "llama_cpp_python-0.3.36.tar.gz").exists()  # which carries the converter
    index.pages.clear()
    assert checkout.provide() == (folder, "")
    assert checkout.plan()[0] == "kept"


def _alter(checkout: Checkout) -> str:
    checkout.index.offer(WHEEL + b"!")
    return f"is not the recorded file: its SHA-256 is {hashlib.sha256(WHEEL + b'!').hexdigest()}"


def _forget(checkout: Checkout) -> str:
    (checkout.folder / "locks/llama-wheels.sha256").write_text("")
    return f"no hash of a prebuilt wheel (cpu, 0.3.36) for Linux {platform.machine()} is in locks/llama-wheels.sha256"


def _need_a_newer_libc(checkout: Checkout) -> str:
    checkout.record(name=NAME.replace("2014", "_9_99").replace("_2_17", "_9_99"))
    return "no hash of a prebuilt wheel"


def _end_the_index(checkout: Checkout) -> str:
    checkout.index.pages.clear()
    return f"{checkout.index.url}/cpu/llama-cpp-python/ answered 404"


def _answer_garbage(checkout: Checkout) -> str:
    checkout.index.pages["/whl/cpu/llama-cpp-python/"] = (200, b"\0\xff<a href='http://[::1'><a href=x></html")
    return f"does not list {NAME}"


def _list_a_local_file(checkout: Checkout) -> str:
    page = f'<a href="file:///etc/{NAME}">'
    checkout.index.pages["/whl/cpu/llama-cpp-python/"] = (200, page.encode())
    return f"does not list {NAME}"


def _remove_the_file(checkout: Checkout) -> str:
    del checkout.index.pages[f"/whl/cpu/files/{NAME}"]
    return "answered 404"


@pytest.mark.skipif(platform.system() != "Linux", reason="the wheel of this test is one for Linux")
@pytest.mark.parametrize(
    "spoil",
    [_alter, _forget, _need_a_newer_libc, _end_the_index, _answer_garbage, _list_a_local_file, _remove_the_file],
)
def test_anything_else_is_compiled_and_the_reason_is_said(spoil: object, checkout: Checkout) -> None:
    why = spoil(checkout)  # type: ignore[operator]
    folder, said = checkout.provide()
    assert not _is_prebuilt(folder) and not list(folder.glob("*.whl"))
    assert "Upstream's prebuilt wheel is not taken: " in said and why in said
    assert "Compiling llama-cpp-python on this machine" in said
    assert not list(folder.parent.glob("prebuilt-*/compiled.txt"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/whl", "http://nowhere.invalid/whl", "file:///etc", "nonsense"])
def test_where_the_index_cannot_be_reached_the_plan_is_to_compile(address: str, checkout: Checkout) -> None:
    word, sentence = checkout.plan(LLAMA_WHEEL_INDEX=address)
    assert word == "compile" and sentence.startswith("is compiled, once (5 to 15 minutes), on this machine: ")
    assert "cannot be reached" in sentence or "is not an address of HTTP" in sentence


@pytest.mark.slow
def test_an_index_that_does_not_answer_costs_seconds(checkout: Checkout, index: Index) -> None:
    index.delay_s = 30
    began = time.monotonic()
    word, sentence = checkout.plan()
    assert (word, time.monotonic() - began < 20) == ("compile", True) and "timed out" in sentence


def test_a_wheel_that_died_here_is_not_taken_again(checkout: Checkout) -> None:
    folder, _ = checkout.provide()
    assert checkout.run("wheels.sh", "--refuse", str(folder)).returncode == 0
    assert checkout.plan() == (
        "compile",
        "is compiled, once (5 to 15 minutes), on this machine: upstream's wheel does not run on this CPU",
    )
    compiled, said = checkout.provide()
    assert not _is_prebuilt(compiled) and "does not run on this CPU" in said
    (folder / "refused").write_text("another CPU\n")  # in a home that two machines share
    shutil.rmtree(compiled)
    assert checkout.provide() == (folder, "")


def test_a_choice_is_kept_to(checkout: Checkout) -> None:
    assert checkout.plan(LLAMA_WHEEL="compile")[1].endswith("LLAMA_WHEEL=compile asks for it")
    assert not _is_prebuilt(checkout.provide(LLAMA_WHEEL="compile")[0])
    assert _is_prebuilt(checkout.provide(LLAMA_WHEEL="cpu")[0])  # although a compiled one is there
    assert checkout.plan(CMAKE_ARGS="-DX=ON")[1].endswith("CMAKE_ARGS is set")
    word, sentence = checkout.plan(LLAMA_WHEEL="cu124")
    assert word == "refused" and "LLAMA_WHEEL=cu124 cannot be had: no hash of a prebuilt wheel (cu124" in sentence
    done = checkout.run("wheels.sh", LLAMA_WHEEL="cu124")
    assert done.returncode == 1 and 'compile it: CMAKE_ARGS="-DGGML_CUDA=on $(' in done.stderr and not done.stdout


def test_without_a_compiler_it_is_said_before_anything_runs(checkout: Checkout, index: Index, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    names = ("bash", "env", "dirname", "uname", "getconf", "sort", "head", "sed", "cat", "sha256sum", "cut", "grep")
    for name in names:
        (programs / name).symlink_to(shutil.which(name) or "/nowhere")
    index.pages.clear()
    word, sentence = checkout.plan(PATH=str(programs))
    assert word == "missing" and sentence.endswith("and there is no C++ compiler")


def test_the_hashes_are_recorded_from_upstreams_releases(checkout: Checkout, index: Index) -> None:
    digest = hashlib.sha256(WHEEL).hexdigest()
    assets = [
        {"name": NAME, "digest": f"sha256:{digest}"},
        {"name": NAME.replace("manylinux", "musllinux"), "digest": f"sha256:{digest}"},
        {"name": "llama_cpp_python-0.3.36-py3-none-win_amd64.whl", "digest": f"sha256:{digest}"},
        {"name": "llama_cpp_python-0.3.36-py3-none-macosx_11_0_arm64.whl", "digest": None},
    ]  # fmt: skip
    cuda = [{"name": "llama_cpp_python-0.3.36-py3-none-manylinux_2_35_x86_64.whl", "digest": f"sha256:{'c' * 64}"}]
    index.pages["/tags/v0.3.36"] = (200, json.dumps({"assets": assets}).encode())
    index.pages["/tags/v0.3.36-cu124"] = (200, json.dumps({"assets": cuda}).encode())
    releases = f"http://127.0.0.1:{index.port}/tags"
    done = checkout.run("lock.sh", "--llama-wheels", LLAMA_WHEEL_RELEASES=releases)
    assert done.returncode == 0, done.stderr
    text = (checkout.folder / "locks/llama-wheels.sha256").read_text()
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        f"{digest}  cpu/{NAME}", f"{'c' * 64}  cu124/llama_cpp_python-0.3.36-py3-none-manylinux_2_35_x86_64.whl",
    ]  # fmt: skip
    index.pages["/tags/v0.3.36"] = (200, b"<html>sign in</html>")
    again = checkout.run("lock.sh", "--llama-wheels", LLAMA_WHEEL_RELEASES=releases)
    assert again.returncode == 1 and "stays as it is" in again.stderr
    assert (checkout.folder / "locks/llama-wheels.sha256").read_text() == text


def test_the_lock_names_only_files_of_the_pinned_version() -> None:
    lines = (REPO_DIR / "locks/llama-wheels.sha256").read_text().splitlines()
    pinned = (REPO_DIR / "locks/sdists.txt").read_text().partition("llama-cpp-python==")[2].split()[0]
    entries = [line for line in lines if not line.startswith("#")]
    wanted = f"/llama_cpp_python-{pinned}-py3-none-"
    assert all(wanted in line for line in entries), "type: scripts/lock.sh --llama-wheels"


def _ninja(first: int, last: int, of: int) -> list[str]:
    return [f"#12 3.4  [{n}/{of}] c++ -c x.cpp" for n in range(first, last + 1)]


def test_progress_of_a_compilation_is_that_of_the_outer_build() -> None:
    seconds = iter(range(60, 10_000, 5))
    progress = CompileProgress(lambda: float(next(seconds)))
    lines = ["Collecting cmake", "#5 [1/3] FROM x", *_ninja(1, 31, 91), *_ninja(1, 20, 20), *_ninja(32, 91, 91)]
    told = [said for line in lines if (said := progress.read(line))]
    assert len(told) == 91 and told[-1] == "compiling llama.cpp: 100 % · elapsed 7:35"
    assert told[0] == "compiling llama.cpp: 1 % · elapsed 0:05"
    assert told[30] == "compiling llama.cpp: 34 % · elapsed 2:35 · about 5 min left"


def test_a_log_is_kept_and_a_pipe_gets_a_line_at_each_tenth(tmp_path: Path) -> None:
    script, log = REPO_DIR / "scripts/compile_progress.py", "\n".join(_ninja(1, 91, 91)).encode()
    done = subprocess.run([sys.executable, script, tmp_path / "log"], input=log, capture_output=True, check=True)
    assert (tmp_path / "log").read_bytes() == log
    assert done.stderr.decode().count("\n") == 11 and b"\r" not in done.stderr


def test_a_build_passes_on_what_its_set_up_says_and_chooses(tmp_path: Path) -> None:
    script = tmp_path / "scripts/setup-local.sh"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "compiling llama.cpp: 34 %" >&2; echo "wheel: $LLAMA_WHEEL" >&2; exit $CODE\n')
    script.chmod(0o755)
    environment = RunEnvironment(repo_dir=tmp_path, set_up={"LLAMA_WHEEL": "cu124", "CODE": "1"})
    notes: list[str] = []
    with pytest.raises(EngineError, match="could not be set up") as caught:
        LocalEngine(environment).prepare("builder", notes.append)
    assert caught.value.detail.endswith("wheel: cu124")
    assert notes[1:] == ["compiling llama.cpp: 34 %", "wheel: cu124"]
    LocalEngine(replace(environment, set_up={"CODE": "0"})).prepare("builder", notes.append)


@pytest.mark.parametrize(
    ("plan", "state", "remedy"),
    [
        ("kept: nothing is compiled: it is in /x", "ok", ""),
        ("prebuilt: nothing is compiled: upstream's wheel", "ok", ""),
        ("compile: is compiled, once (5 to 15 minutes): why", "note", "make images ENGINE=local"),
        ("missing: it must be compiled (why), and there is no C++ compiler", "note", "apt-get install g++"),
        ("refused: LLAMA_WHEEL=cu124 cannot be had", "note", "LLAMA_WHEEL=auto"),
    ],
)
def test_doctor_says_which_it_will_be(plan: str, state: str, remedy: str, tmp_path: Path) -> None:
    script = tmp_path / "scripts/wheels.sh"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\n[ "$1" = --plan ] && echo "{plan}"\n')
    script.chmod(0o755)
    parser = argparse.ArgumentParser()
    add_command_options(parser)
    request = read_command_request(parser.parse_args([]), {"ARTIFACTS": str(tmp_path)})
    finding = doctor._examine_llama_cpp(replace(request, environment=replace(request.environment, repo_dir=tmp_path)))
    assert (finding.state, finding.value) == (state, plan.partition(": ")[2])
    assert remedy in finding.remedy and bool(remedy) == bool(finding.remedy)
