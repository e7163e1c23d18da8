"""Asks a Docker daemon about its machine and its images.

A command with nothing to run needs only this, and importing the SDK would take most of its time. So a daemon on a Unix
socket is asked with the standard library; any other (DOCKER_HOST=tcp://… or ssh://…) through the SDK.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, Protocol
from urllib.parse import quote

from quantyard.errors import EngineError
from quantyard.protocol.runner import stage_error_causes

OTHER_MACHINES_HINT: Final = "Choose nodes of the kind of the machine that you type on: SLURM_CONSTRAINT=feature"


class DockerDaemon(Protocol):
    """The requests that a plan needs; answers have the fields of Docker's API."""

    def info(self) -> Mapping[str, Any]:
        """Information on the daemon and its machine."""

    def version(self) -> str:
        """The daemon's version."""

    def image(self, name: str) -> Mapping[str, Any] | None:
        """An image by name and tag; None if it does not exist."""


def no_docker_error(error: BaseException) -> EngineError:
    """The error for a daemon that does not answer."""
    *_, root = stage_error_causes(error)  # the SDK wraps a missing socket in four errors
    message = f"The Docker daemon does not answer: {first_error_line(root)}."
    return EngineError(message, "Start Docker (on Debian: scripts/docker-debian.sh), or use ENGINE=local.")


def first_error_line(error: BaseException) -> str:
    """The first line of an error's text; its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class SocketDaemon:
    """A daemon that listens on a Unix socket.

    Raises:
        EngineError: the daemon does not answer; its methods raise it too if a request fails.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        self._path, self._timeout_s, self._prefix = path, timeout_s, ""
        version = self._get("/_ping")[0]
        self._prefix = f"/v{version}" if version else ""

    def info(self) -> Mapping[str, Any]:
        """See `DockerDaemon`."""
        return self._ask("/info") or {}

    def version(self) -> str:
        """See `DockerDaemon`."""
        return str((self._ask("/version") or {}).get("Version", ""))

    def image(self, name: str) -> Mapping[str, Any] | None:
        """See `DockerDaemon`."""
        return self._ask(f"/images/{quote(name, safe='/:@')}/json")

    def _ask(self, path: str) -> Mapping[str, Any] | None:
        """The JSON object of an answer; None for 404."""
        _, body = self._get(path)
        try:
            value = json.loads(body or b"null")
        except ValueError as error:
            raise no_docker_error(error) from error
        return value if isinstance(value, dict) else None

    def _get(self, path: str) -> tuple[str, bytes]:
        """The version of the daemon's API, and the body of its answer, which is empty for 404."""
        connection = _SocketConnection(self._path, self._timeout_s)
        try:
            connection.request("GET", self._prefix + path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise no_docker_error(error) from error
        finally:
            connection.close()
        if answer.status == 404:
            return "", b""
        if answer.status != 200:
            said = body.decode(errors="replace").strip() or answer.reason
            raise EngineError(f"The Docker daemon failed: {said[:300]}", "Check it with make doctor.")
        return answer.headers.get("API-Version", ""), body


class _SocketConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
