"""Setting up a virtual environment, with pip and a package of our own; and one with llama.cpp, prebuilt."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import platform
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantyard.paths import REPO_DIR


def _wheel(folder: Path) -> str:
    """A package that does nothing. Returns its SHA-256."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Checkout:
    """A folder with the set-up script and locks of one tiny package."""

    folder: Path
    digest: str

    def set_up(self, group: str = "test", sha256: str = "") -> subprocess.CompletedProcess[str]:
        """Set a group up, with another hash in its lock where one is given."""
        lock = f"tiny==1.0 \\\n    --hash=sha256:{sha256 or self.digest}\n"
        (self.folder / f"locks/{group}.txt").write_text(lock)
        wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder / "wheels"), "PIP_EXTRA_INDEX_URL": ""}
        argv = [self.folder / "scripts/setup-venv.sh", group]
        return subprocess.run(argv, env=os.environ | wheels, capture_output=True, text=True, check=False)

    @property
    def ready(self) -> Path:
        """The file that names the complete groups."""
        return self.folder / ".venv/.ready"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "checkout"
    for name in ("scripts", "locks", "wheels"):
        (folder / name).mkdir(parents=True)
    for name in ("setup-venv.sh", "uv.sh", "uv_options.py"):
        shutil.copy(REPO_DIR / "scripts" / name, folder / "scripts")
    (folder / "locks/pip.txt").write_text("")  # the interpreter's own pip does
    return Checkout(folder, _wheel(folder / "wheels"))


@pytest.mark.parametrize("installer", ["pip", pytest.param("uv", marks=pytest.mark.quick)])
def test_a_set_up_refuses_a_package_whose_hash_is_altered(installer: str, checkout: Checkout) -> None:
    if installer == "uv":
        _have_uv(checkout.folder)
    digest = checkout.digest
    refused = checkout.set_up(sha256=("0" if digest[0] != "0" else "1") + digest[1:])
    assert refused.returncode == 1
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not checkout.ready.exists()
    made = checkout.set_up()
    assert (made.returncode, made.stderr.splitlines()[-1]) == (0, ".venv is ready (test).")
    (installed,) = checkout.folder.glob(".venv/lib/python*/site-packages/tiny-1.0.dist-info/INSTALLER")
    assert installed.read_text().strip() == installer


def _have_uv(folder: Path) -> None:
    """The lock of uv, which is in the cache where an environment of the project was set up."""
    shutil.copy(REPO_DIR / "locks/lock.txt", folder / "locks")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not any(cache.glob("quantyard/uv-*/bin/uv")):
        pytest.skip("uv was never installed here: pip installed the tests' environment")


def _move(checkout: Checkout) -> None:
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))


def _remove_interpreter(checkout: Checkout) -> None:
    python = checkout.folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")


def _remove_pip(checkout: Checkout) -> None:
    (package,) = checkout.folder.glob(".venv/lib/python*/site-packages/pip")
    shutil.rmtree(package)
    checkout.ready.write_text(checkout.ready.read_text().replace("test ", "test 0"))  # so that pip is asked for


@pytest.mark.parametrize(
    "spoil",
    [_move, *(pytest.param(how, marks=pytest.mark.slow) for how in (_remove_interpreter, _remove_pip))],
)
def test_an_environment_that_no_longer_works_is_made_again_and_holds_only_what_is_installed_again(
    spoil: Callable[[Checkout], None], checkout: Checkout
) -> None:
    for group in ("test", "lint"):
        assert checkout.set_up(group).returncode == 0
    assert checkout.set_up("lint").stderr == ""
    spoil(checkout)
    made = checkout.set_up("test")
    assert made.returncode == 0 and made.stderr.startswith("Making .venv"), made.stderr
    assert [line.split()[0] for line in checkout.ready.read_text().splitlines()] == ["test"]
    assert (checkout.folder / ".venv/bin/pip").read_text().startswith(f"#!{checkout.folder}/")


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/whl"
        server.shutdown()


def _offer(folder: Path, wheel: bytes) -> None:
    """An index with this wheel alone, and its hash in the lock."""
    machine = platform.machine()
    name = f"llama_cpp_python-0.3.36-py3-none-manylinux2014_{machine}.manylinux_2_17_{machine}.whl"
    page = folder / "whl/cpu/llama-cpp-python/index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f'<a href="../{name}">{name}</a>')
    (folder / "whl/cpu" / name).write_bytes(wheel)
    (folder / "locks/llama-wheels.sha256").write_text(f"{hashlib.sha256(wheel).hexdigest()}  cpu/{name}\n")


def _made_for_another_cpu(wheel: Path, copy: Path) -> bytes:
    """The same package, killed as by an instruction that this CPU does not have."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in whole.infolist():
            if entry.filename.endswith("/RECORD"):
                archive.writestr(entry, "")
            elif entry.filename == "llama_cpp/__init__.py":
                archive.writestr(entry, "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
            else:
                archive.writestr(entry, whole.read(entry))
    return copy.read_bytes()


# Ten minutes of compiling, in a second: what its list names is copied.
COMPILER = """#!/usr/bin/env bash
set -e
[[ $1 != --sources ]] || {{ cp {wheels}/*.tar.gz {wheels}/*.zip "$2/"; exit; }}
mkdir -p "$1"
cp {wheels}/* "$1/"
grep -q ^llama-cpp-python "$(dirname "$0")/../locks/sdists.txt" && touch {folder}/compiled || {{
    rm "$1"/llama_cpp_python-*-linux_*.whl
    grep -v ^llama {wheels}/compiled.txt >"$1/compiled.txt"
}}
"""


# What the self-check and the packages of sdists.txt import; the rest of the lock takes minutes.
NEEDED = (
    "absl-py", "certifi", "charset-normalizer", "click", "cloudpickle", "defusedxml", "diskcache", "gguf", "idna",
    "jinja2", "joblib", "markupsafe", "nltk", "numpy", "pyyaml", "regex", "requests", "six", "tqdm",
    "typing-extensions", "urllib3", "xllamacpp",
)  # fmt: skip


def _shorten(folder: Path) -> None:
    """The lock of an environment with llama.cpp, without torch and what measures."""
    entries = re.split(r"\n(?=[a-z])", (folder / "bench.txt").read_text())
    kept = [entry for entry in entries if entry.partition("==")[0] in NEEDED]
    (folder / "bench.txt").write_text("\n".join(kept))
    for name in ("torch.txt", "torch-cpu.txt"):
        (folder / name).write_text("")


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="the wheel of this test is one for Linux")
def test_a_prebuilt_llama_cpp_is_installed_and_one_that_dies_here_is_compiled_instead(
    local_tools: None, tmp_path: Path
) -> None:
    del local_tools  # its set-up has compiled llama.cpp, or downloaded it
    done = subprocess.run([REPO_DIR / "scripts/wheels.sh"], capture_output=True, text=True, check=True)
    (compiled,) = (wheels := Path(done.stdout.strip())).glob("llama_cpp_python-*.whl")
    for name in ("scripts", "locks", "docker", "quantyard/formatting"):
        shutil.copytree(REPO_DIR / name, tmp_path / name)
    shutil.copy(REPO_DIR / "versions.env", tmp_path)
    _shorten(tmp_path / "locks")
    _offer(tmp_path, compiled.read_bytes())
    ready = tmp_path / ".venv-bench/.ready"
    with _served(tmp_path) as index:
        given = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "DOCKER_HOST": "unix:///nowhere.sock"}
        set_up = functools.partial(
            subprocess.run, [tmp_path / "scripts/setup-local.sh", "bench"], capture_output=True, text=True, check=False,
            env=os.environ | given | {"LLAMA_WHEEL_INDEX": index},
        )  # fmt: skip
        made = set_up()
        assert made.returncode == 0 and "Downloading upstream's wheel" in made.stderr, made.stderr
        assert "wheels prebuilt-" in ready.read_text() and not (tmp_path / "compiled").exists()
        _offer(tmp_path, _made_for_another_cpu(compiled, tmp_path / "dying.whl"))
        with (tmp_path / "locks/bench.txt").open("a") as lock:  # so that there is something to set up
            lock.write("\n# changed\n")
        (tmp_path / "docker/compile-wheels.sh").write_text(COMPILER.format(folder=tmp_path, wheels=wheels))
        again = set_up()
    assert again.returncode == 0, again.stderr
    assert "does not run here: it was killed by an illegal instruction" in again.stderr
    assert "upstream's wheel does not run on this CPU" in again.stderr
    assert "wheels prebuilt-" not in ready.read_text() and (tmp_path / "compiled").exists()
