"""Values and files that cannot be: each ends in our words and the exit code of who is to blame, never as our bug."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from quantyard.cli.faults import quantyard_error_of
from quantyard.engines.local import LocalEngine
from quantyard.errors import EngineError
from quantyard.paths import REPO_DIR
from tests.hostile.sampling import sampled
from tests.hub_server import HubServer
from tests.released import Said, Yard, lay_out

LIMIT_S = 30
BLAME = {2, 3, 4, 5}  # a request, a model, the network, the machine; 70 would be ours


def _no_tools(*_: object) -> None:
    raise EngineError("There are no tools here.", "They are not what is tested.")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("odd")
        patch.chdir(root)  # where a relative name may be made
        patch.setattr(LocalEngine, "prepare", _no_tools)
        yield lay_out(root, hub, patch)


@contextmanager
def in_time() -> Iterator[None]:
    """A command that waits for ever is stopped, and has failed."""

    def stop(*_: object) -> None:
        raise AssertionError(f"no answer in {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def blames(said: Said, *, codes: set[int] = BLAME) -> None:
    """In our words, one error, and no traceback."""
    assert said.code in codes, (said.code, said.err[-2000:])
    assert "Traceback" not in said.err and "report it" not in said.err
    assert "error:" in said.err and len(said.err) < 20_000


# ---- numbers and words -------------------------------------------------------------------------------

NUMBERS = {
    "threads": "plan", "workers": "plan", "memory": "plan", "limit": "plan", "seed": "plan", "num-fewshot": "plan",
    "chunks": "plan", "n-gpu-layers": "plan", "max-length": "plan", "port": "serve", "context-size": "serve",
    "min-tps": "choose", "max-kld": "choose", "ram": "choose", "parallel": "choose", "split-above": "publish",
    "parts": "tune", "target-kld": "tune", "target-size": "tune",
}  # fmt: skip
NO_NUMBERS = {
    "many digits": "9" * 5000, "nan": "nan", "inf": "inf", "minus inf": "-inf", "far": "1e999", "hex": "0x10",
    "words": "many", "minus": "-99999999999999999999", "wide": "\uff11\uff12", "Arabic": "\u0661\u0662",
    "point": "1.5.2",
    "line": "1\n2", "separators": "1_0", "tiny point": ".", "a fraction's digits": "0." + "1" * 5000 + "x",
}  # fmt: skip
_NUMBERS = list(itertools.product(NUMBERS, NO_NUMBERS))


@pytest.mark.parametrize(("setting", "kind"), sampled(_NUMBERS, 24))
def test_what_is_no_number_is_a_bad_request(yard: Yard, setting: str, kind: str) -> None:
    with in_time():
        model = () if NUMBERS[setting] == "serve" else (f"--model={yard.model}",)
        said = yard.run(NUMBERS[setting], *model, f"--{setting}={NO_NUMBERS[kind]}")
    blames(said, codes={2})
    assert setting.upper().replace("-", "_") in said.err


WORDS = ("model", "quant", "outtype", "engine", "imatrix", "tasks", "suite", "baseline", "gguf-file", "hf-endpoint",
         "https-proxy", "recipe", "calibration", "datasets", "extra-ca", "artifacts")  # fmt: skip
NO_WORDS = {
    "half a character": "a\udcffb", "NUL": "a\0b", "5,000 letters": "n" * 5000, "5,000 folders": "d/" * 5000 + "x.yaml",
    "a line end": "a\nb", "escape": "\x1b[31m", "a comma": ",", "dots": "../../..", "a tilde": "~nobody-here/x",
    "100,000 letters": "n" * 100_000, "an @": "@", "a slash": "/", "an option": "--help",
}  # fmt: skip
_WORDS = list(itertools.product(WORDS, NO_WORDS))


@pytest.mark.parametrize(("setting", "kind"), sampled(_WORDS, 30))
def test_a_word_that_cannot_be_is_not_our_bug(yard: Yard, setting: str, kind: str) -> None:
    value = NO_WORDS[kind]
    given = [] if setting == "model" else [f"--model={yard.model}"]
    with in_time():
        said = yard.run("plan", *given, f"--{setting}={value}")
    if said.code:
        blames(said)


# ---- files and folders -------------------------------------------------------------------------------

FILES = {
    "model": ("plan", "--model=@"), "gguf": ("plan", "--model=@.gguf"), "recipe": ("plan", "--recipe=@.yaml"),
    "imatrix": ("plan", "--imatrix=@.gguf"), "calibration": ("plan", "--calibration=@.txt", "--imatrix=auto"),
    "suite": ("plan", "--suite=@.yaml"), "datasets": ("plan", "--suite=quick", "--datasets=@"),
    "extra CA": ("plan", "--extra-ca=@.pem"), "artifacts": ("build", "--artifacts=@"),
    "gate": ("gate", "--gate=@.yaml"),
    "cosign key": ("publish", "--quant=Q4_K_M", "--repo=me/x", "--yes", "--cosign-key=@.key"),
    "file": ("verify", "--file=@"),
    "file.gguf": ("verify", "--file=@.gguf"), "model file": ("serve", "--model-file=@.gguf"),
    "adapter": ("lora", "--adapter=@"), "artifacts of serve": ("serve", "--artifacts=@"),
    "artifacts of choose": ("choose", "--artifacts=@"),
    "home": ("plan", "HF_HOME=@"),
    "docker": ("publish", "--quant=Q4_K_M", "--oci=127.0.0.1:9/me/x", "--yes", "DOCKER_CONFIG=@"),
}  # fmt: skip


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _holding(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, suppress(OSError):  # whose path may be too long
        made.bind(str(path))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": _fifo, "a folder": Path.mkdir, "nothing": lambda path: None, "an empty file": _holding(b""),
    "noise": _holding(bytes(range(256)) * 64), "NULs": _holding(bytes(10_000)),
    "half of UTF-8": _holding(b"name: \xe4\xb8\n"),
    "a byte order mark": _holding("\ufeffname: x\n".encode()), "UTF-16": _holding("name: x\n".encode("utf-16")),
    "brackets": _holding(b"[" * 100_000), "a number of 10,000 digits": _holding(b"a: " + b"9" * 10_000),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/x"),
    "a link to memory": lambda path: path.symlink_to("/proc/self/mem"), "a tebibyte of holes": _sparse,
    "an endless device": lambda path: path.symlink_to("/dev/zero"), "a socket": _socket,
    "below a file": lambda path: (path.parent / "file").write_text("x"),
}  # fmt: skip
_FILES = list(itertools.product(FILES, ODD))


@pytest.mark.parametrize(("setting", "kind"), sampled(_FILES, 40))
def test_a_file_that_cannot_be_is_not_our_bug(
    yard: Yard, tmp_path: Path, setting: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *argv = FILES[setting]
    place = tmp_path / "file" / "x" if kind == "below a file" else tmp_path / "x"
    for part in list(argv):
        name, _, value = part.partition("=")
        path = Path(value.replace("@", str(place)))
        if "@" in value:
            ODD[kind](tmp_path / "x" if kind == "below a file" else path)
        if not name.startswith("-"):
            argv.remove(part)
            monkeypatch.setenv(name, str(path))
    given = [] if setting in ("model", "gguf", "file", "file.gguf") else [f"--model={yard.model}"]
    given = [] if command in ("serve", "lora", "rates", "verify") else given
    with in_time():
        said = yard.run(command, *given, *(part.replace("@", str(place)) for part in argv))
    if said.code:
        blames(said, codes=BLAME | {6, 42, 44})


# ---- the machine -------------------------------------------------------------------------------------

FAULTS = {
    errno.ENOSPC: 5, errno.EDQUOT: 5, errno.EFBIG: 5, errno.ENOMEM: 5, errno.EMFILE: 5, errno.ENFILE: 5,
    errno.EAGAIN: 5,
    errno.EIO: 5, errno.EACCES: 2, errno.EPERM: 2, errno.EROFS: 2, errno.ENOTDIR: 2, errno.EISDIR: 2, errno.ELOOP: 2,
    errno.ENAMETOOLONG: 2, errno.ENOENT: 2, errno.EEXIST: 2, errno.EBUSY: 2, errno.ESTALE: 2,
}  # fmt: skip


@pytest.mark.parametrize(("number", "code"), FAULTS.items(), ids=[errno.errorcode[n] for n in FAULTS])
def test_a_fault_of_the_machine_or_a_path_says_so(number: int, code: int) -> None:
    error = OSError(number, os.strerror(number), f"/place/{'n' * 5000}\x1b")
    found = quantyard_error_of(error)
    assert found.code == code and found.hint and not found.detail
    assert "/place/nnn" in found.message and len(found.message) < 500 and "\x1b" not in found.message


def test_a_fault_that_led_to_another_error_counts_and_our_own_bug_stays_ours() -> None:
    later = ValueError("while writing")
    later.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert quantyard_error_of(later).code == 5
    assert quantyard_error_of(MemoryError()).code == 5
    for bug in (KeyError("x"), RecursionError(), OSError(errno.EBADF, "Bad file descriptor")):
        assert quantyard_error_of(bug).code == 70 and "report it" in quantyard_error_of(bug).hint


def _process(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, "ENGINE": "local", "QUANTYARD": f"{sys.executable} -m quantyard", **environment}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=REPO_DIR, env=whole, text=True, capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip


STREAMS = {
    "a reader that has enough": ("$QUANTYARD quants --json | head -c 1", {0, 141}),
    "a reader that was never there": ("$QUANTYARD quants --json | true", {0, 141}),
    "a full disk": ("$QUANTYARD quants > /dev/full", {5}), "both full": ("$QUANTYARD quants > /dev/full 2>&1", {5}),
    "no stdout": ("$QUANTYARD quants >&-", {0}), "no stderr": ("$QUANTYARD plan 2>&-", {2}),
    "no stream at all": ("$QUANTYARD plan <&- >&- 2>&-", {2}),
    "an old encoding": ("PYTHONIOENCODING=latin-1 $QUANTYARD quants", {0}),
    "ASCII": ("PYTHONIOENCODING=ascii $QUANTYARD models", {0}),
    "the locale C": ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $QUANTYARD models", {0}),
    "bytes that are no text": ("$QUANTYARD plan --model=$'\\xff\\xfe'", {2}),
    "such bytes in the environment": ("MODEL=$'\\xff' ARTIFACTS=$'/tmp/\\xff' $QUANTYARD plan", {2}),
    "a working directory that is gone": ("d=$(mktemp -d); cd $d; rmdir $d; PYTHONPATH=$ROOT $QUANTYARD plan", {2}),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(list(STREAMS), 5))
def test_streams_encodings_and_limits_of_the_shell_end_no_command_as_our_bug(name: str) -> None:
    command, codes = STREAMS[name]
    done = _process(command, ROOT=str(REPO_DIR))
    assert done.returncode in codes, (done.returncode, done.stderr[-2000:])
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
