"""A small registry that speaks OCI's distribution protocol over HTTP, and goes wrong when it is told to."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

USER, SECRET, TOKEN = "me", "pass word:1", "identity-1"


@dataclass
class Fault:
    """What goes wrong with requests of this method whose path holds `where`."""

    method: str
    where: str
    status: int = 0
    words: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of a body that are kept before the connection closes
    times: int = 1
    after: int = 0  # such requests that still go well


@dataclass
class OciServer:
    """What it holds, what it was asked, and how it is to behave."""

    auth: str = ""  # "", "basic" or "bearer"
    token_uses: int = 1_000_000  # requests that one token is good for
    forgets_uploads: bool = False  # after a cut
    absolute_host: str = ""  # where uploads are sent instead
    storage: str = ""  # where downloads of blobs are led to: host:port of another server
    breaks_after: list[int] = field(default_factory=list)  # bytes of each next download before the connection closes
    faults: list[Fault] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Authorization
    tokens: dict[str, int] = field(default_factory=dict)  # "token scope" → uses left
    address: str = ""

    def asked(self, method: str, where: str = "") -> int:
        return sum(1 for m, path, _ in self.log if m == method and where in path)


@contextmanager
def oci_server(**settings: Any) -> Iterator[OciServer]:
    """One on a free port of the loopback interface."""
    state = OciServer(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.address = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: OciServer

    def handle_any(self) -> None:
        path = urlsplit(self.path).path
        self.state.log.append((self.command, self.path, self.headers.get("Authorization", "")))
        fault = next((f for f in self.state.faults if f.times and f.method == self.command and f.where in path), None)
        if fault and fault.after:
            fault.after, fault = fault.after - 1, None
        if fault:
            fault.times -= 1
        if fault and fault.cut_after is not None:
            self._cut(path, fault.cut_after)
        elif fault:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            errors = {"errors": [{"code": "DENIED", "message": fault.words}]}
            self._answer(fault.status, json.dumps(errors).encode() if fault.words else b"", **fault.headers)
        elif path == "/token":
            self._token()
        elif self._is_let_in():
            self._serve(path, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def __getattr__(self, name: str) -> Any:
        """Every method of HTTP, as the base class looks for it: do_GET, do_PATCH …"""
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)

    def _cut(self, path: str, n: int) -> None:
        """Keep the first bytes, as a registry does, and hang up."""
        body = self.rfile.read(n)
        if path in self.state.uploads and not self.state.forgets_uploads:
            self.state.uploads[path] += body
        elif self.state.forgets_uploads:
            self.state.uploads.pop(path, None)
        self.close_connection = True
        self.connection.close()

    def _serve(self, path: str, body: bytes) -> None:
        state, tail = self.state, path.rsplit("/", 1)[-1]
        match self.command:
            case "GET" if path == "/v2/":
                self._answer(200, b"{}")
            case "GET" | "HEAD" if "/blobs/" in path and path not in state.uploads:
                self._send_blob(path, state.blobs.get(tail))
            case "POST":
                place = f"{path}{len(state.uploads)}"
                state.uploads[place] = b""
                self._answer(202, Location=f"{state.absolute_host}{place}")
            case "GET" if path in state.uploads:
                self._answer(204, Range=f"0-{max(0, len(state.uploads[path]) - 1)}", Location=path)
            case "PATCH" if path in state.uploads:
                self._patch(path, body)
            case "PUT" if path in state.uploads:
                self._finish(path)
            case "DELETE" if path in state.uploads:
                del state.uploads[path]
                self._answer(204)
            case "PUT" if "/manifests/" in path:
                state.manifests[tail] = body
                self._answer(201)
            case "GET" if (found := self._published(path, tail)) is not None:
                self._answer(200, found)
            case _:
                self._answer(404)

    def _published(self, path: str, tail: str) -> bytes | None:
        if path.endswith("/tags/list"):
            return json.dumps({"tags": list(self.state.manifests)}).encode() if self.state.manifests else None
        return self.state.manifests.get(tail) if "/manifests/" in path else None

    def _send_blob(self, path: str, blob: bytes | None) -> None:
        if self.command == "HEAD" or blob is None:
            self._answer(404 if blob is None else 200, blob or b"")
            return
        if self.state.storage:
            self._answer(307, Location=f"http://{self.state.storage}{path}?signed=1")
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(blob) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(blob) - 1}/{len(blob)}")
        self.end_headers()
        n_bytes = self.state.breaks_after.pop(0) if self.state.breaks_after else len(blob)
        self.wfile.write(blob[start : start + n_bytes])
        if n_bytes < len(blob) - start:
            self.close_connection = True

    def _patch(self, path: str, body: bytes) -> None:
        start = int(self.headers["Content-Range"].partition("-")[0])
        if start != len(self.state.uploads[path]):
            self._answer(416)
            return
        self.state.uploads[path] += body
        self._answer(202, Location=path)

    def _finish(self, path: str) -> None:
        digest = parse_qs(urlsplit(self.path).query)["digest"][0]
        content = self.state.uploads.pop(path)
        if digest != f"sha256:{hashlib.sha256(content).hexdigest()}":
            self._answer(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "no match"}]}')
            return
        self.state.blobs[digest] = content
        self._answer(201)

    def _is_let_in(self) -> bool:
        state, given = self.state, self.headers.get("Authorization", "")
        if not state.auth or (state.auth == "basic" and given == _basic()):
            return True
        action = "pull" if self.command in ("GET", "HEAD") else "pull,push"
        if state.auth == "bearer" and (key := self._token_in_use(given.removeprefix("Bearer "), action)):
            state.tokens[key] -= 1
            return True
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        challenge = 'Basic realm="here"'
        if state.auth == "bearer":
            scope = f"repository:team/name:{action}"
            challenge = f'Bearer realm="http://{state.address}/token",service="reg",scope="{scope}"'
        self._answer(401, **{"WWW-Authenticate": challenge})
        return False

    def _token_in_use(self, token: str, action: str) -> str:
        """Who may push may pull."""
        alive = [key for key, uses in self.state.tokens.items() if uses and key.partition(" ")[0] == token]
        return next((key for key in alive if action in (key.rpartition(":")[2], "pull")), "")

    def _token(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        asked = parse_qs(body or urlsplit(self.path).query)
        if self.headers.get("Authorization") != _basic() and asked.get("refresh_token") != [TOKEN]:
            self._answer(401)
            return
        token = f"t{len(self.state.tokens)}"
        self.state.tokens[f"{token} {asked['scope'][0]}"] = self.state.token_uses
        self._answer(200, json.dumps({"token": token}).encode())

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests read `log`."""


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
