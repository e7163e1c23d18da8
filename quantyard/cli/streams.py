"""stdout and stderr of this process: prepared at the start, flushed or discarded at the end."""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path


def prepare_stdout() -> None:
    """Make writing safe: characters outside the terminal's encoding are written as escapes, and output to a stream that
    was closed before the start (`>&-`) is discarded.
    """
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  (for as long as the process lives)
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Flush both streams, so that a full disk or a closed pipe is found while it can still be reported.

    Raises:
        OSError: a stream cannot be written.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def is_stdout_read() -> bool:
    """Whether the readers of both streams, if they are pipes, are still there."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            poll.register(stream.fileno(), 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def discard_stdout() -> None:
    """Discard output that cannot be written: the interpreter would try again at exit, and fail."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
