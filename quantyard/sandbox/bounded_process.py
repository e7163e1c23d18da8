"""Runs foreign code, such as a chat template, in a separate process with limits of time and memory.

    worker = SandboxWorker([sys.executable, "-I", "worker.py"])  # answers each line of JSON with one of its own
    answer = worker.ask(question)                                # OverLimit: what it did, in words

As a script it gives any program its limits: `python bounded.py CPU_S MEMORY_BYTES PROGRAM ARGUMENT…`.

Time is CPU time, which a busy machine does not shorten, and beside it a longer one by the clock. Memory is what a
process may write to, as Linux counts it (RLIMIT_DATA): unlike its address space, that does not grow with the cores.
macOS does not enforce a limit of memory; there only the time ends the process.

Standard library alone, and no module of ours: the converter's Python runs it too.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

CPU_S: Final = 10
CLOCK_S: Final = 60.0  # for one answer; CPU time ends it long before, unless the machine is very busy
SLACK_S: Final = 60.0  # by the clock, for all answers of one program together, and beside it so much for each
MEAN_S: Final = 0.25  # real templates take milliseconds
MEMORY_BYTES: Final = 1 << 30
MAX_ANSWER_BYTES: Final = 16 << 20
TOO_SLOW: Final = f"gives no answer within {CLOCK_S:.0f} s"
TOO_SLOW_IN_ALL: Final = f"takes more than {MEAN_S} s for each of many conversations"
TOO_LARGE: Final = f"writes more than {MAX_ANSWER_BYTES >> 20} MiB"
_STATUS: Final = Path("/proc/self/status")
_UNLIMITED: Final = resource.RLIM_INFINITY


class OverLimit(Exception):
    """It took more than it may, or broke what ran it; the message goes on after its name: `runs longer than 10 s`."""


def sandbox_time_exceeded(cpu_s: int = CPU_S) -> str:
    """The words for one that runs on."""
    return f"runs longer than {cpu_s} s"


def sandbox_memory_exceeded(memory_bytes: int = MEMORY_BYTES) -> str:
    """The words for one that wants more memory than that."""
    return f"needs more than {memory_bytes >> 20:,} MiB of memory"


def sandbox_exit_words(exit_code: int, memory_bytes: int = MEMORY_BYTES, cpu_s: int = CPU_S) -> str:
    """The words for a process of this exit code (negative: the signal) that should have answered."""
    if exit_code == -signal.SIGXCPU:
        return sandbox_time_exceeded(cpu_s)
    if exit_code in (-signal.SIGKILL, -signal.SIGABRT):
        return sandbox_memory_exceeded(memory_bytes)
    name = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return f"ends the program that renders it ({name})"


def sandbox_this_process(cpu_s: int = CPU_S, memory_bytes: int = MEMORY_BYTES) -> None:
    """Let this process go on for so many seconds of CPU time, and take so much more memory than it has."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower_process_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + cpu_s)
    _lower_process_limit(resource.RLIMIT_DATA, _process_data_bytes() + memory_bytes)
    _lower_process_limit(resource.RLIMIT_CORE, 0)  # one that crashes leaves no file


def sandbox_grant_cpu_time(pid: int, cpu_s: int = CPU_S) -> None:
    """Let another process (`sandboxed_command`) go on for so many seconds of CPU time (Linux; else nothing)."""
    with suppress(OSError, ValueError, AttributeError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system
        hard = resource.prlimit(pid, resource.RLIMIT_CPU)[1]
        resource.prlimit(pid, resource.RLIMIT_CPU, (int(used) + cpu_s, hard))


def _lower_process_limit(kind: int, value: int) -> None:
    """The soft limit alone: the next question raises that of the time again."""
    hard = resource.getrlimit(kind)[1]
    with suppress(OSError, ValueError):  # macOS knows some of them by name only
        resource.setrlimit(kind, (value if hard == _UNLIMITED else min(value, hard), hard))


def _process_data_bytes() -> int:
    if not _STATUS.is_file():
        return 0
    line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmData:")), "VmData: 0 kB")
    return int(line.split()[1]) * 1024


def sandboxed_command(argv: Sequence[str], memory_bytes: int = MEMORY_BYTES) -> list[str]:
    """The command line that runs `argv` with so much memory, and `CPU_S` seconds until it is granted more."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(CPU_S), str(memory_bytes), *argv]


class SandboxBudget:
    """Sees to it that many answers, each within its limit, do not take hours."""

    def __init__(self) -> None:
        self._left_s = SLACK_S

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Around each answer.

        Raises:
            OverLimit: all so far took too long.
        """
        started = time.monotonic()
        yield
        self._left_s += MEAN_S - (time.monotonic() - started)
        if self._left_s < 0:
            raise OverLimit(TOO_SLOW_IN_ALL)


class SandboxWorker:
    """A process that answers lines of JSON; it is started by the first question, and again after it was ended."""

    def __init__(self, argv: Sequence[str], cpu_s: int = CPU_S) -> None:
        """`argv` is given the seconds for each answer as its last argument, and has to keep to them."""
        self._argv, self._cpu_s = [*argv, str(cpu_s)], cpu_s
        self._process: subprocess.Popen[bytes] | None = None
        self._budget = SandboxBudget()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __del__(self) -> None:
        self.close()

    def ask(self, question: object, clock_s: float = CLOCK_S) -> Any:
        """The answer to a question.

        Raises:
            OverLimit: it took too long or too much, or ended; nothing of it is left then.
        """
        process = self._process or self._start()
        line = json.dumps(question).encode() + b"\n"
        try:
            with self._budget.one_more():
                answer = json.loads(_exchange_line_with_process(process, line, time.monotonic() + clock_s))
        except (OSError, ValueError) as error:  # the process has ended
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            code = process.poll()
            self.close()
            raise OverLimit(TOO_LARGE if code is None else sandbox_exit_words(code, cpu_s=self._cpu_s)) from error
        except BaseException:
            self.close()
            raise
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        return self._process


def _exchange_line_with_process(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes:
    """Send a line, and return the one that comes back."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    parts: list[bytes] = []
    size = 0
    while not parts or not parts[-1].endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise OverLimit(TOO_SLOW)
        part = os.read(process.stdout.fileno(), 1 << 16)
        parts.append(part)
        size += len(part)
        if not part or size > MAX_ANSWER_BYTES:
            raise ValueError("no whole line")
    return b"".join(parts)


def _run_bounded(cpu_s: int, memory_bytes: int, argv: Sequence[str]) -> None:
    sandbox_this_process(cpu_s, memory_bytes)
    os.execv(argv[0], list(argv))  # noqa: S606  (no shell is needed)


if __name__ == "__main__":
    _run_bounded(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
