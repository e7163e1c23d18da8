"""The engine `local`: every stage is a process on this machine, for machines without a Docker daemon.

The same stage modules run in `.venv-local`, with llama-cpp-python instead of llama.cpp's programs. They are not
isolated: a stage can reach the network and the user's files, so a hostile model file can do more harm. Use the docker
engine for models that you do not trust.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO

from quantyard.engines import OnNote, OnProgress
from quantyard.engines.capacity import Capacity, engine_machine_capacity
from quantyard.engines.lines import OutputLines
from quantyard.engines.secrets import SECRETS_ON_STDIN, engine_proxies, engine_secrets_line
from quantyard.engines.stage_io import StageListener, engine_timeout_error, read_engine_result
from quantyard.errors import EngineError
from quantyard.hardware.machine import cpu_name, gpu_name, machine_memory_bytes
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import StageResult
from quantyard.requests import RunEnvironment
from quantyard.store.artifact import Artifact, Workspace

_STOP_S = 5.0
_TAIL_LINES = 15
_BLOCK_BYTES = 64 * 1024
_INSTALLED = "import importlib.metadata as m; print(*sorted(f'{d.name}=={d.version}' for d in m.distributions()))"


class LocalEngine:
    """Runs stages as processes on this machine."""

    name = "local"

    def __init__(self, environment: RunEnvironment) -> None:
        self._environment = environment
        self._venv = environment.venv
        self._python = self._venv / "bin" / "python"
        self._converters = self._venv / "share" / "llama.cpp"
        self._running: set[subprocess.Popen[bytes]] = set()

    def capacity(self) -> Capacity:
        """The capacity of this machine."""
        memory = self._environment.memory_bytes or machine_memory_bytes()
        return engine_machine_capacity(cpu_name(), os.cpu_count() or 1, memory, gpu_name())

    def identity(self, image: str) -> str | None:
        """Digest of the packages in `.venv-local`, for `openvino` also in `.venv-openvino`; None until they are set
        up.
        """
        own, other = self._own_identity(), _ready_digest(self._openvino_venv)
        if image != "openvino" or own is None:
            return own
        return None if other is None else f"{own}+openvino+{other}"

    def _own_identity(self) -> str | None:
        if self._environment.brought_venv:
            return self._brought_identity
        ready = _ready_digest(self._venv)
        return None if ready is None else f"local+{ready}"

    @cached_property
    def _brought_identity(self) -> str:
        """Digest of the packages and the converter of an environment that the user made."""
        found = hashlib.sha256(self.describe("")["packages"].encode())
        for path in sorted(self._converters.rglob("*.py")):
            found.update(path.relative_to(self._converters).as_posix().encode() + path.read_bytes())
        return "brought+" + found.hexdigest()

    def prepare(self, image: str, on_note: OnNote) -> None:
        """Set up the virtual environments if they are missing or out of date; the script returns at once otherwise."""
        if not self._environment.brought_venv:
            if not (self._venv / ".ready").exists():
                longer = "5 to 15 more where llama-cpp-python must be compiled"
                on_note(f"setting up {self._venv} (a few minutes; {longer})")
            self._set_up("setup-local.sh", "local", str(self._venv), on_note=on_note)
        if image == "openvino":
            self._set_up("setup-venv.sh", "openvino", str(self._openvino_venv), on_note=on_note)

    @property
    def _openvino_venv(self) -> Path:
        return self._environment.openvino_venv or self._environment.repo_dir / ".venv-openvino"

    def _set_up(self, script: str, *arguments: str, on_note: OnNote) -> None:
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        with subprocess.Popen(
            self._environment.set_up_argv(script, *arguments), text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                tail.append(line.rstrip())
                on_note(line.rstrip())
        if process.returncode != 0:
            message = "The tools of ENGINE=local could not be set up."
            raise EngineError(message, "See what is missing: make doctor", "\n".join(tail))

    def describe(self, image: str) -> dict[str, str]:
        """Every package of `.venv-local`, for the manifest."""
        del image
        run = subprocess.run([str(self._python), "-c", _INSTALLED], capture_output=True, text=True, check=False)
        return {"engine": "local", "packages": run.stdout.strip()}

    def converter_list(self) -> str | None:
        """The list of `.venv-local`'s converter."""
        with suppress(OSError):
            return (self._converters / "conversion" / "__init__.py").read_text(encoding="utf-8")
        return None

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run the stage as a process group, and always stop the whole group."""
        self._link_inputs(space, inputs)
        argv = [str(self._python), "-m", spec.row.module, "--in", str(space.in_dir), "--out", str(space.out_dir)]
        argv += [SECRETS_ON_STDIN, "--die-with-stdin"]
        process = subprocess.Popen(
            argv, env=self._variables(spec, space), cwd=space.out_dir, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self._running.add(process)
        listener = StageListener(spec.row.name, on_progress)
        try:
            _send_secrets_to_stage(process, engine_secrets_line(spec, self._environment))
            exit_code = self._follow(spec, process, listener)
        finally:
            _stop_stage_process(process)
            self._running.discard(process)
        return read_engine_result(spec, space.out_dir, exit_code, listener.tail)

    def stop(self) -> None:
        """Stop the processes of all running stages."""
        for process in tuple(self._running):
            _stop_stage_process(process)

    def _link_inputs(self, space: Workspace, inputs: Mapping[str, Artifact]) -> None:
        for name, artifact in inputs.items():
            if artifact.whole_folder:
                (space.in_dir / name).symlink_to(artifact.folder, target_is_directory=True)
                continue
            for entry in artifact.files:
                link = space.in_dir / name / entry.path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(artifact.place_of(entry.path))

    def _variables(self, spec: StageSpec, space: Workspace) -> dict[str, str]:
        home = space.out_dir.parent / "home"
        home.mkdir(exist_ok=True)
        env = {
            "PATH": f"{self._venv / 'bin'}:{os.defpath}", "HOME": str(home), "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(self._environment.repo_dir),
            "LLAMA_CONVERTER": str(self._converters / "convert_hf_to_gguf.py"),
            "LLAMA_LORA_CONVERTER": str(self._converters / "convert_lora_to_gguf.py"),
            "CONVERTER_PYTHON": str(self._python),
            "OPENVINO_PYTHON": str(self._openvino_venv / "bin" / "python"),
            "CONVERTER_PACKAGES": str(self._venv / "share" / "transformers-4.57"),
            "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "agg",  # plots without a display
            "GOMP_SPINCOUNT": "1000",  # as in eval.Dockerfile: waiting OpenMP threads soon release their core
        }
        if not spec.row.network:
            return env | {"HF_HUB_OFFLINE": "1"}
        env |= engine_proxies(self._environment)
        if self._environment.ca_bundle:
            env |= {name: str(self._environment.ca_bundle) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")}
        return env

    def _follow(self, spec: StageSpec, process: subprocess.Popen[bytes], listener: StageListener) -> int:
        """Read the output of a process until it ends, and stop what it started; returns its exit code."""
        readers = (
            _StreamReader(process, process.stdout, listener.on_stdout),
            _StreamReader(process, process.stderr, listener.on_stderr),
        )
        timer = threading.Timer(spec.row.timeout_s, _stop_stage_process, [process])
        timer.daemon = True
        for thread in (*readers, timer):
            thread.start()
        started = time.monotonic()
        try:
            exit_code = process.wait()
        finally:
            timer.cancel()
            _stop_stage_process(process)
            for reader in readers:
                reader.stop()
        if error := next((reader.error for reader in readers if reader.error is not None), None):
            raise error
        if exit_code < 0 and time.monotonic() - started >= spec.row.timeout_s:
            raise engine_timeout_error(spec)
        return exit_code


def _ready_digest(venv: Path) -> str | None:
    """Digest of what an environment was made from; None until it is set up."""
    ready = venv / ".ready"
    return hashlib.sha256(ready.read_bytes()).hexdigest() if ready.exists() else None


def _send_secrets_to_stage(process: subprocess.Popen[bytes], secrets: bytes) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # the process has ended already; its stderr says why
        process.stdin.write(secrets)
        process.stdin.flush()


class _StreamReader(threading.Thread):
    """Reads one stream of a process. An error is kept for the waiting thread, and ends the process, which would
    otherwise block on a full pipe.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], stream: IO[bytes] | None, on_line: Callable[[str], None]
    ) -> None:
        super().__init__(daemon=True)
        assert stream is not None
        self._process, self._stream, self._on_line = process, stream, on_line
        self._stopped = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Read until the stream ends."""
        try:
            self._read_lines()
        except BaseException as error:
            self.error = error
            _stop_stage_process(self._process)

    def stop(self) -> None:
        """After the process has ended, read the rest; do not wait for other processes that hold the stream open."""
        self.join(timeout=_STOP_S)
        self._stopped.set()

    def _read_lines(self) -> None:
        lines = OutputLines()
        while block := os.read(self._stream.fileno(), _BLOCK_BYTES):
            for line in lines.feed(block):
                self._read_line(line)
        for line in lines.end():
            self._read_line(line)

    def _read_line(self, line: str) -> None:
        if not self._stopped.is_set():
            self._on_line(line)


def _stop_stage_process(process: subprocess.Popen[bytes]) -> None:
    """Stop the stage and the tools that it started, first with SIGTERM, then with SIGKILL."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
