"""Podman behind Docker's API, so that a node with Podman runs stages as one with Docker."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from quantyard.errors import EngineError

_STARTS_WITHIN_S: Final = 30.0
_ENDS_WITHIN_S: Final = 10.0


@contextmanager
def podman_service() -> Iterator[None]:
    """Have DOCKER_HOST name Podman's service: the user's own, if it is set, else one that ends with this block.

    Raises:
        EngineError: Podman is not installed, or its service does not start.
    """
    if os.environ.get("DOCKER_HOST"):
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="quantyard-podman-"))  # 0700; the paths of sockets must be short
    try:
        service = _start_podman(folder)
        try:
            os.environ["DOCKER_HOST"] = f"unix://{folder}/podman.sock"
            yield
        finally:
            os.environ.pop("DOCKER_HOST", None)
            _end_podman(service)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start_podman(folder: Path) -> subprocess.Popen[bytes]:
    log = folder / "log"
    argv = ["podman", "system", "service", "--time=0", f"unix://{folder}/podman.sock"]
    try:
        with log.open("wb") as output:
            service = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    except FileNotFoundError as error:
        hint = "Install it there (Debian: apt-get install podman), or choose another: NODE_ENGINE=local"
        raise EngineError("The podman command is not installed on this node.", hint) from error
    until = time.monotonic() + _STARTS_WITHIN_S
    while not (folder / "podman.sock").exists():
        if service.poll() is not None or time.monotonic() > until:
            _end_podman(service)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise EngineError("Podman's service did not start on this node.", "Try it there: podman info", tail)
        time.sleep(0.05)
    return service


def _end_podman(service: subprocess.Popen[bytes]) -> None:
    service.terminate()
    try:
        service.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()
