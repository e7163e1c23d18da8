"""Looking at containers from outside."""

from __future__ import annotations

import time
from typing import Any

import docker.errors


def stops(container: Any, within_s: float = 15) -> bool:
    """Whether a container stops, or is removed, soon."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            container.reload()
        except docker.errors.NotFound:
            return True
        if container.status in ("exited", "dead"):
            return True
        time.sleep(0.01)
    return False
