"""Starts a server of one model on loopback with a key in a file, and sends plain HTTP requests to any server.

The stage's environment decides which program serves: SERVER_ENTRYPOINT (that of the image that will serve), else
llama-server in LLAMA_BIN, else the local server (server/local/server.py). An encoder-decoder is served by
`encoder_decoder.image`, with the library in LLAMA_BIN. With SERVER_ENTRYPOINT, the proxy that will be in front of the
server is started too (`launch_proxy`), if the image has it. The key is passed neither as an argument nor in the
environment.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import httpx2

from quantyard.formats.gguf import GgufError, read_gguf_header
from quantyard.protocol.aborts import TailWithReason, crash_words
from quantyard.protocol.api_tests import LocalModel, LocalServerSettings
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from server.api_checks.launch_proxy import ProxyFiles

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.1
_CONNECT_TIMEOUT_S: Final = 10.0
_ANSWER_TIMEOUT_S: Final = 300.0  # enough for a large model on few cores
_STOP_TIMEOUT_S: Final = 10.0
_LOG_TAIL_BYTES: Final = 64 * 1024  # an assertion stands before a backtrace
_LOG_TAIL_LINES: Final = 20
_PASSED_ON: Final = (
    "PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "LLAMA_SERVER", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip
_KILLED: Final = (-signal.SIGKILL, 128 + signal.SIGKILL)  # exit codes of a killed child, directly and through a shell

# To add a sign: add words of a server's log, in lower case, that show why it ended.
_MEMORY_SIGNS: Final = (
    "out of memory", "memory ran out", "failed to allocate", "cannot allocate memory", "bad_alloc", "memoryerror",
)  # fmt: skip
_MODEL_SIGNS: Final = (
    "unknown model architecture", "error loading model", "failed to load model", "unknown pre-tokenizer",
    "is not a gguf", "model path does not exist",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; `body` is {} if the text is not a JSON object."""

    status: int
    text: str
    content_type: str = ""
    duration_s: float = 0.0

    @property
    def body(self) -> dict[str, Any]:
        try:
            value = json.loads(self.text)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@cache
def _api_test_client() -> httpx2.Client:
    """The client of every request. trust_env=False: proxies from the environment must not see the key."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.Client(limits=limits, trust_env=False)


@dataclass(frozen=True)
class Wire:
    """Plain HTTP to a server at `address` (no trailing slash), as a client with this key; None: without one.

    Thread-safe. Every request opens a connection of its own: if a server closed a shared one after a stream, the next
    request would fail through no fault of its answer.

    Raises (every method):
        httpx2.TransportError: the server gave no answer.
    """

    address: str
    key: str | None
    timeout_s: float = _ANSWER_TIMEOUT_S

    def with_key(self, key: str | None) -> Wire:
        """The same server with another key."""
        return Wire(self.address, key, self.timeout_s)

    def get(self, path: str) -> Answer:
        """One GET."""
        return self.send("GET", path, None)

    def post(self, path: str, body: object) -> Answer:
        """One POST of a JSON value."""
        return self.post_text(path, json.dumps(body))

    def post_text(self, path: str, text: str) -> Answer:
        """One POST of a text, declared as JSON."""
        return self.send("POST", path, text)

    def send(self, method: str, path: str, text: str | None) -> Answer:
        """One request of any method; None: without a body."""
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        started = time.perf_counter()
        timeout = httpx2.Timeout(self.timeout_s, connect=_CONNECT_TIMEOUT_S)
        answer = _api_test_client().request(method, self.address + path, content=text, headers=headers, timeout=timeout)
        duration_s = time.perf_counter() - started
        return Answer(answer.status_code, answer.text, answer.headers.get("content-type", ""), duration_s)


def free_loopback_port() -> int:
    """A free TCP port of loopback."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Launch:
    """The model to serve, and the settings of its server."""

    model: Path
    folder: Path  # private: key, configuration and log are written here
    environment: Mapping[str, str]
    threads: int = 0  # 0: the server's default
    n_ctx: int = 4096  # tokens per client
    parallel: int = 4
    load_timeout_s: float = 900.0
    projector: Path | None = None  # what reads pictures or sound for the model


@dataclass
class ServedModel:
    """A context manager for a server's process: ready on entry, ended on exit.

    Raises:
        StageFailure: `serve-load`, `serve-crash` (3: the model is not supported), `out-of-memory` (5), `serve-slow`
            (5: not ready in time), `serve-start` (70: the server itself does not run).
    """

    launch: Launch
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    port: int = field(default_factory=free_loopback_port)
    argv: tuple[str, ...] = ()
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)  # the server, then its proxy

    @property
    def address(self) -> str:
        return f"http://{_HOST}:{self.port}"

    def __enter__(self) -> Self:
        try:
            self._start()
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def check_alive(self, during: str = "its start") -> None:
        """Raise the failure that ended a process, if one has ended. `during`: what was going on."""
        if not self._processes or any(process.poll() is not None for process in self._processes):
            raise self._failure(during)

    def _start(self) -> None:
        proxy = ProxyFiles.of(self.launch.environment)
        key_file = proxy.key_file if proxy else self.launch.folder / "api-key"
        _write_private_key_file(key_file, self.key + "\n")
        port = free_loopback_port() if proxy else self.port
        self.argv, variables = self._command(key_file, port)
        self._run(self.argv, variables)
        if proxy:
            self._run(proxy.command(self.launch.folder, self.port, port), {})

    def _run(self, argv: tuple[str, ...], variables: Mapping[str, str]) -> None:
        passed_on = {name: value for name, value in self.launch.environment.items() if name in _PASSED_ON}
        try:
            with self._log_path.open("ab") as log:
                process = subprocess.Popen(
                    argv, env=passed_on | dict(variables), cwd=self.launch.folder, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, process_group=0,
                )  # fmt: skip
            self._processes.append(process)
        except OSError as error:
            message = f"The server does not start: {error}."
            hint = "Build the images again: make images"
            raise StageFailure(ExitCode.BUG, "serve-start", message, hint) from error

    def _command(self, key_file: Path, port: int) -> tuple[tuple[str, ...], dict[str, str]]:
        """The command line of the program that serves, and its extra environment variables."""
        environment = self.launch.environment
        if self._is_encoder_decoder() and environment.get("LLAMA_BIN"):
            argv = (sys.executable, "-P", "-m", "server.encoder_decoder.image")
            return argv, self._entrypoint_variables(key_file, port) | {"LLAMA_BIN": environment["LLAMA_BIN"]}
        if entrypoint := environment.get("SERVER_ENTRYPOINT"):
            return tuple(shlex.split(entrypoint)), self._entrypoint_variables(key_file, port)
        if folder := environment.get("LLAMA_BIN"):
            return self._llama_server(Path(folder) / "llama-server", key_file, port), {}
        launch, settings_file = self.launch, self.launch.folder / "server.json"
        settings = LocalServerSettings(
            port=port, key=self.key, models=(
                LocalModel(path=launch.model, name=launch.model.stem, projector=launch.projector),
            ),
            context_size=launch.n_ctx * launch.parallel, parallel=launch.parallel, threads=launch.threads,
        )
        _write_private_key_file(settings_file, settings.model_dump_json())
        # -P: modules of the working directory cannot replace libraries
        return (sys.executable, "-P", "-m", "server.local.server", str(settings_file)), {}

    def _is_encoder_decoder(self) -> bool:
        try:
            return read_gguf_header(self.launch.model).is_encoder_decoder
        except (GgufError, OSError):  # the server says what is wrong with it
            return False

    def _entrypoint_variables(self, key_file: Path, port: int) -> dict[str, str]:
        """Variables of the entrypoint. It chooses context and slots itself, as it will when it serves."""
        named = {"MODEL": self.launch.model, "PORT": port, "API_KEY_FILE": key_file, "HOST": _HOST}
        named |= {"MMPROJ": self.launch.projector} if self.launch.projector else {}
        threads = {"THREADS": self.launch.threads} if self.launch.threads else {}
        return {name: str(value) for name, value in (named | threads).items()}

    def _llama_server(self, program: Path, key_file: Path, port: int) -> tuple[str, ...]:
        launch = self.launch
        flags: dict[str, object] = {
            "--model": launch.model, "--alias": launch.model.stem, "--host": _HOST, "--port": port,
            "--api-key-file": key_file, "--parallel": launch.parallel, "--ctx-size": launch.n_ctx * launch.parallel,
        }  # fmt: skip
        if launch.projector:
            flags["--mmproj"] = launch.projector
        if launch.threads:
            flags["--threads"] = launch.threads
        return (str(program), *(str(part) for flag in flags.items() for part in flag))

    def _wait_until_ready(self) -> None:
        wire = Wire(self.address, self.key, timeout_s=_CONNECT_TIMEOUT_S)
        deadline = time.monotonic() + self.launch.load_timeout_s
        while not _is_served_model_ready(wire):
            self.check_alive()
            if time.monotonic() > deadline:
                message = f"The server was not ready after {self.launch.load_timeout_s:.0f} s."
                hint = "Choose a smaller quant, or a machine with more memory: a model that does not fit loads slowly."
                raise StageFailure(ExitCode.RESOURCES, "serve-slow", message, hint, self._log_tail())
            time.sleep(_POLL_S)

    def _failure(self, during: str) -> StageFailure:
        code = next((code for process in self._processes if (code := process.poll()) is not None), None)
        tail = self._log_tail()
        words = tail.lower()
        message = f"The server ended with exit code {code} during {during}."
        if code in _KILLED or any(sign in words for sign in _MEMORY_SIGNS):
            hint = "Give it more memory: MEMORY=16GiB, or close other programs."
            return StageFailure(ExitCode.RESOURCES, "out-of-memory", f"Memory ran out. {message}", hint, tail)
        if any(sign in words for sign in _MODEL_SIGNS):
            hint = "Its log says why; the usual reason is an architecture that llama.cpp does not support yet."
            message = f"The server cannot load the model: it ended with exit code {code} during {during}."
            return StageFailure(ExitCode.UNSUPPORTED_MODEL, "serve-load", message, hint, tail)
        if crashed := crash_words(code or 0, tail):
            hint = "llama.cpp cannot serve this model. Another version of it may: LLAMA_CPP_TAG=server-bNNNN"
            message = f"The server {crashed} during {during}."
            return StageFailure(ExitCode.UNSUPPORTED_MODEL, "serve-crash", message, hint, tail)
        hint = "The end of its log says why. Build the images again: make images"
        return StageFailure(ExitCode.BUG, "serve-start", message, hint, tail)

    def _stop(self) -> None:
        """End the process groups, first with SIGTERM, then with SIGKILL."""
        for process in reversed(self._processes):
            for wish in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, wish)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_TIMEOUT_S)

    @property
    def _log_path(self) -> Path:
        return self.launch.folder / "server.log"

    def _log_tail(self) -> str:
        with self._log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace").replace(self.key, "…")
        return TailWithReason.of_lines(text.splitlines(), _LOG_TAIL_LINES)


def _is_served_model_ready(wire: Wire) -> bool:
    """Whether the model is loaded."""
    try:
        return wire.get("/health").status == 200
    except httpx2.TransportError:
        return False


def _write_private_key_file(path: Path, text: str) -> None:
    """Write a file that has mode 0600 from the start."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
