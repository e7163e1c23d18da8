"""Names of the processes that submit jobs. A job bears that of its own, so that another run does not cancel it."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path


def submitter_name(pid: int) -> str:
    """Host, number and start of a process of this host, so that another process of that number is not taken for it."""
    started = ""
    with suppress(OSError, IndexError):
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()}:{pid}:{started}"


def is_submitter_alive_elsewhere(submitter: str, me: str) -> bool:
    """Whether another process that submitted a job still runs. One of another host counts as alive."""
    if submitter == me:
        return False
    host, _, rest = submitter.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or not rest.isdigit():
        return True
    return submitter_name(int(rest)) == submitter
