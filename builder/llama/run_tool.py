"""Runs one tool of llama.cpp as a subprocess, passes on its output line by line, and keeps the last lines."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from quantyard.protocol.aborts import TailWithReason, crash_words
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_TAIL_LINES = 15
_FULL_BYTES = 1024 * 1024  # with less free space than this, a failure is put down to a full disk
_LONGEST_ERROR = 300  # characters
_FRAME = re.compile(r"\s*Traceback \(most recent|  File \"|    |\s*[\^~]+\s*$|The above exception|During handling of")
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Exit|Interrupt)(:|$)")
_DISK_WORDS = ("no space left", "failed to write")


@dataclass(frozen=True)
class ToolRun:
    """A finished tool: its exit code (negative: the signal that killed it) and the last lines of its output."""

    argv: tuple[str, ...]
    exit_code: int
    tail: str

    @property
    def end(self) -> str:
        """For a message: "exit code 1", or the assertion by which it aborted."""
        return crash_words(self.exit_code, self.tail) or f"exit code {self.exit_code}"

    @property
    def words(self) -> str:
        """The last lines without the frames of a traceback, which say nothing to who runs it."""
        return "\n".join(line for line in self.tail.splitlines() if not _FRAME.match(line))

    @property
    def error(self) -> str:
        """The exception that ended a Python program, as "KeyError: 'n_ctx'"; "" where none did."""
        found = [line for line in self.words.splitlines() if _EXCEPTION.match(line)]
        return found[-1].strip()[:_LONGEST_ERROR] if found else ""


def run_llama_tool(
    argv: Sequence[str], env: Mapping[str, str], on_line: Callable[[str], None], timeout_s: float | None = None
) -> ToolRun:
    """Run `argv` with exactly the environment `env`; every line of stdout and stderr goes to `on_line`.

    After `timeout_s` it gets SIGXCPU, so that callers see the same signal as for a tool over its CPU limit.
    """
    tail = TailWithReason(_TAIL_LINES)
    with subprocess.Popen(
        list(argv), env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(timeout_s or 0, process.send_signal, [signal.SIGXCPU])
        if timeout_s:
            timer.start()
        try:
            for line in _llama_tool_lines(process.stdout):
                tail.append(line)
                on_line(line)
        finally:
            timer.cancel()
    return ToolRun(tuple(argv), process.returncode, str(tail))


def refuse_exhausted_tool(run: ToolRun, out_dir: Path, tool: str) -> None:
    """Raise if a failed tool ran out of disk or memory, so that the failure is not blamed on the model.

    Raises:
        OSError: ENOSPC; `run_stage` turns it into a failure with exit code 5.
        StageFailure: 5, the tool was killed because memory ran out.
    """
    text = run.tail.lower()
    if any(words in text for words in _DISK_WORDS) or shutil.disk_usage(out_dir).free < _FULL_BYTES:
        raise OSError(errno.ENOSPC, "No space left on device")
    if run.exit_code == -signal.SIGKILL or "memoryerror" in text:
        message = f"{tool} was killed, most likely because memory ran out."
        hint = "Give it more: MEMORY=16GiB, or close other programs."
        raise StageFailure(ExitCode.RESOURCES, "out-of-memory", message, hint, run.tail)


def _llama_tool_lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they arrive. A carriage return also ends a line: progress bars use it."""
    rest = b""
    while block := stream.read1(65536):  # type: ignore[attr-defined]
        *whole, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
        yield from (text for line in whole if (text := line.decode(errors="replace").rstrip()))
    if rest.strip():
        yield rest.decode(errors="replace").rstrip()
