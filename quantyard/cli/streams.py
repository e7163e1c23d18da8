"""stdout and stderr of this process: prepared at the start, flushed and let go at the end."""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path


def prepare_stdout() -> None:
    """Let no character end a command: what the terminal's encoding lacks is written as its escape. What was closed
    before the start (`>&-`) swallows what is written.
    """
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  (for as long as the process lives)
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Write what waits to be written, so that a full disk or a closed pipe shows while it can still be reported.

    Raises:
        OSError: it cannot be written.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def is_stdout_read() -> bool:
    """Whether the other end of both pipes, where they are pipes, is still open."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            poll.register(stream.fileno(), 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def discard_stdout() -> None:
    """Let go what cannot be written: the interpreter would try once more at its end, and fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
