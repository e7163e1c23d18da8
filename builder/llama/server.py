"""A llama-server process and the HTTP requests to it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import tempfile
import time
from typing import IO, Any, Final

from quantyard.protocol.aborts import TailWithReason, crash_words, without_backtrace
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.02
_ANSWER_TIMEOUT_S: Final = 3600.0  # a very large model on a slow disk; the stage has its own limit
_MAX_ANSWER_BYTES: Final = 64 << 20
_LOG_TAIL_BYTES: Final = 64 * 1024  # an assertion stands before a backtrace
_LOG_TAIL_LINES: Final = 20


class LlamaServer:
    """One llama-server. `start` returns at once; the first `ask` waits until the model is loaded."""

    def __init__(self, command: list[str], timeout_s: float = _ANSWER_TIMEOUT_S) -> None:
        self._port, self._timeout_s = _free_port_of_template_server(), timeout_s
        self.argv = (*command, "--host", _HOST, "--port", str(self._port))
        self._connection = http.client.HTTPConnection(_HOST, self._port, timeout=timeout_s)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._is_loaded = False

    def start(self) -> None:
        """Start the process; its output goes to an unnamed temporary file."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (stop closes it)
        quiet = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        try:
            self._process = subprocess.Popen(self.argv, **quiet)  # type: ignore[call-overload]
        except OSError as error:
            self.stop()
            message = f"llama-server does not start: {error}"
            raise StageFailure(ExitCode.BUG, "verify-load", message, "Build the images again: make images") from error

    def stop(self) -> None:
        """Kill the process, if there is one; it has no state that would need a clean shutdown."""
        self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._log is not None:
            self._log.close()

    def ask(self, method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, dict[str, Any]]:
        """One request; returns the status and the answer's JSON object.

        Raises:
            StageFailure: the model does not load, or the server crashes.
        """
        self._wait_until_loaded()
        for _ in range(2):  # the server closes a kept-alive connection now and then, perhaps while we write
            try:
                return self._ask_once(method, path, body)
            except TimeoutError as error:
                raise self.failure(f"did not answer within {self._timeout_s:.0f} s", "verify-load") from error
            except (ConnectionError, http.client.HTTPException):
                self._connection.close()
                time.sleep(_POLL_S)  # after a crash the exit code takes a moment to appear
        raise self.failure("crashed", "verify-load")

    def failure(self, what: str, kind: str) -> StageFailure:
        """A failure with the exit code, if the process has ended, and the end of the server's log."""
        code = self.exit_code()
        if code == -signal.SIGKILL:
            hint = "Give it more memory: MEMORY=16GiB, or close other programs."
            return StageFailure(ExitCode.RESOURCES, "out-of-memory", "Memory ran out while the model loaded.", hint)
        crashed = crash_words(code or 0, self.log_tail())
        ended = "" if code is None else f" ({crashed or f'exit code {code}'})"
        message = f"llama.cpp {what}{ended}."
        hint = "The end of its log says why; the usual reason is an architecture that llama.cpp does not support yet."
        if crashed:
            hint = "Choose another model, or another version of llama.cpp: LLAMA_CPP_TAG=full-bNNNN"
        detail = without_backtrace(self.log_tail()) if crashed else self.log_tail()
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, kind, message, hint, detail)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def exit_code(self) -> int | None:
        """The exit code (negative: the signal that killed it); None while it runs."""
        return self._process.poll() if self._process is not None else None

    def _ask_once(self, method: str, path: str, body: dict[str, object] | None) -> tuple[int, dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        text = response.read(_MAX_ANSWER_BYTES + 1)
        if len(text) > _MAX_ANSWER_BYTES:
            self._connection.close()
            return 500, {"error": f"an answer of more than {_MAX_ANSWER_BYTES >> 20} MiB"}
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"error": text.decode(errors="replace")}
        return response.status, answer if isinstance(answer, dict) else {"error": answer}

    def _wait_until_loaded(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while not self._is_loaded:
            if self._process is None or self._process.poll() is not None:
                raise self.failure("does not load the model", "verify-load")
            if time.monotonic() > deadline:
                raise self.failure(f"does not load the model within {self._timeout_s:.0f} s", "verify-load")
            try:
                self._is_loaded = self._ask_once("GET", "/health", None)[0] == 200
            except (OSError, http.client.HTTPException):
                self._connection.close()
            if not self._is_loaded:
                time.sleep(_POLL_S)

    def log_tail(self) -> str:
        """The last lines of its output."""
        if self._log is None:
            return ""
        self._log.seek(max(0, self._log.seek(0, 2) - _LOG_TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").splitlines()
        return TailWithReason.of_lines(lines, _LOG_TAIL_LINES)


def _free_port_of_template_server() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
