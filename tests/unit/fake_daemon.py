"""A Docker daemon on a Unix socket that knows its machine and whichever images it is told of; it runs nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any
from urllib.parse import unquote

INFO = {"NCPU": 8, "MemTotal": 16 * 2**30}


@dataclass
class FakeDaemon:
    """What it answers, and what it was asked."""

    socket: Path
    images: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    raw: bytes | None = None  # what it sends in place of any answer but that to a ping
    status: int = 200  # of every answer but that to a ping
    asked: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.socket}"

    def answer(self, path: str) -> tuple[int, object]:
        """Status and value."""
        self.asked.append(path)
        if path == "/_ping":
            return 200, "OK"
        path = path.removeprefix("/v1.47")
        if self.status != 200:
            return self.status, {"message": "it was told to fail"}
        if path == "/info":
            return 200, INFO
        if path == "/version":
            return 200, {"Version": "28.1"}
        image = self.images.get(unquote(path).removeprefix("/images/").removesuffix("/json"))
        return (200, image) if image is not None else (404, {"message": "No such image"})


@contextmanager
def fake_daemon(folder: Path) -> Iterator[FakeDaemon]:
    """One that listens in this folder."""
    daemon = FakeDaemon(folder / "docker.sock")

    class Handler(BaseHTTPRequestHandler):
        def address_string(self) -> str:
            return "unix"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            status, value = daemon.answer(self.path)
            if daemon.raw is not None and self.path != "/_ping":
                self.wfile.write(daemon.raw)
                return
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("API-Version", "1.47")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingUnixStreamServer(str(daemon.socket), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield daemon
        server.shutdown()
