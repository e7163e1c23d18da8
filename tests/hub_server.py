"""A small Hub: speaks the protocol of huggingface.co to the real huggingface_hub client.

Point HF_ENDPOINT (or `endpoint=`) at `HubServer.endpoint`. Files stored with LFS are answered with a redirect
to a second port, as the real Hub sends its clients to a CDN, so that a test can see what goes to a foreign host.
A data set is a repo whose id begins with "datasets/", which is how its addresses begin.
Large files are streamed from disk, and to it: what is written here (`hub_uploads.py`) lasts as long as the server.
By hand:

    python -m tests.hub_server [--folder DIR --repo org/name] [--host H] [--port P] [--token T]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub_repo import BLOCK_BYTES, Blob, Repo, is_lfs, model_info, paths_info, refs, tree
from tests.hub_uploads import Account, Uploads, WriteSide

SLICE_S = 0.02  # how often a slow body sends a piece


@dataclass
class Fault:
    """What goes wrong with the answers for one path; `times` None: every time."""

    times: int | None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    truncate_after: int | None = None  # bytes of the body sent before the connection closes
    corrupt: bool = False  # flips the first byte of the body
    bytes_per_s: int | None = None
    ignore_range: bool = False
    cut_after: int | None = None  # bytes of an upload read before the connection closes
    said: str = "injected"  # the error in the body of the answer
    together: threading.Barrier | None = None  # no byte of the body is sent before as many bodies are asked for


@dataclass
class Request:
    """One entry of the log; `body_bytes` were really sent, `received_bytes` really read."""

    method: str
    path: str
    range: str | None
    authorized: bool  # an Authorization header was there, right or wrong
    on_cdn: bool
    status: int = 0
    body_bytes: int = 0
    received_bytes: int = 0
    said: Any = None  # what came as JSON


class HubServer:
    """The Hub as a context manager: `with HubServer() as hub: hub.add_repo("org/name", files={...})`.

    `token` may read everything; `stranger` is a valid token of somebody with no access to private and gated repos.
    `writer` may read everything and write what is called me/… or team/…; the stranger, what is called stranger/….
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, token: str = "hf_reader_0123456789",
        stranger: str = "hf_stranger_0123456789", writer: str = "hf_writer_0123456789",
    ) -> None:
        self.token, self.stranger, self.writer = token, stranger, writer
        self.accounts = {
            stranger: Account("stranger", "write"), token: Account("me", "read", ("team",)),
            writer: Account("me", "write", ("team",)),
        }
        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.uploads = Uploads(Path(self._folder.name))
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[Request] = []
        self._faults: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()
        self._hub = _server(self, host, port, on_cdn=False)
        self._cdn = _server(self, host, 0, on_cdn=True)
        self.host, self.port = host, self._hub.server_address[1]
        self.cdn_port = self._cdn.server_address[1]

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be; with host 0.0.0.0, put an address the client can reach in its place."""
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> HubServer:
        for server in (self._hub, self._cdn):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()
        self._folder.cleanup()

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes] | None = None, folder: Path | None = None, *,
        gated: bool | str = False, private: bool = False, disabled: bool = False, license: str | None = None,
        lfs: Callable[[str, int], bool] | None = None, branches: tuple[str, ...] = ("main",),
        tags: tuple[str, ...] = (),
    ) -> Repo:
        """Add (or replace) a repo of in-memory `files` or of everything below `folder`.

        `lfs(path, size_bytes)` decides what is stored with LFS; by default what the Hub's .gitattributes would.
        """
        stored = lfs or is_lfs
        contents: dict[str, bytes | Path] = dict(files or {})
        if folder is not None:
            paths = (p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts)
            contents |= {p.relative_to(folder).as_posix(): p for p in paths}
        blobs = {}
        for name, content in sorted(contents.items()):
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            blobs[name] = Blob(content, stored(name, size))
        repo = Repo(repo_id, blobs, gated, private, disabled, license, branches, tags)
        self.repos[repo_id] = repo
        return repo

    def rename(self, old: str, new: str) -> None:
        """Answer every request for `old` with a redirect to `new`."""
        self.renamed[old] = new

    def fail(
        self, path: str, *, times: int | None = 1, status: int | None = None, retry_after: int | None = None,
        error_code: str | None = None, error_message: str | None = None, truncate_after: int | None = None,
        corrupt: bool = False, bytes_per_s: int | None = None, ignore_range: bool = False, cut_after: int | None = None,
        said: str = "injected", together: threading.Barrier | None = None,
    ) -> None:
        """Make the next `times` answers for `path` go wrong (None: all).

        `path` is a file's path inside its repo (`status` then strikes before the redirect to the CDN, the others
        where the body is sent), or the path of any other call, beginning with "/"; an upload's is `uploads.path_of`.
        """
        headers = {"Retry-After": retry_after, "X-Error-Code": error_code, "X-Error-Message": error_message}
        fault = Fault(
            times, status, {k: str(v) for k, v in headers.items() if v is not None},
            truncate_after, corrupt, bytes_per_s, ignore_range, cut_after, said, together,
        )
        self._faults.setdefault(path, []).append(fault)

    def heal(self) -> None:
        """Forget all faults and the log."""
        self._faults.clear()
        self.requests.clear()
        self.uploads.hooks.clear()

    def bodies(self, name: str) -> list[Request]:
        """The GET requests that were answered with bytes of this file, in order."""
        return [r for r in self.requests if r.method == "GET" and r.status in (200, 206) and r.path.endswith(name)]

    def take_fault(self, path: str, *, with_status: bool) -> Fault | None:
        """The fault to apply now, counted down."""
        with self._lock:
            for fault in self._faults.get(path, []):
                if (fault.status is not None) == with_status and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def find(self, sha256: str) -> tuple[str, Blob] | None:
        """An LFS file by its hash: what the CDN looks up."""
        kept = (snapshot for repo in self.repos.values() for snapshot in repo.snapshots())
        named = (item for snapshot in kept for item in snapshot.files.items())
        return next(((name, blob) for name, blob in named if blob.lfs and blob.sha256 == sha256), None)


def _server(hub: HubServer, host: str, port: int, *, on_cdn: bool) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "on_cdn": on_cdn})
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    return server


class _Handler(WriteSide, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a small answer waits for 40 ms
    hub: HubServer
    on_cdn: bool
    entry: Request

    def log_message(self, format: str, *args: Any) -> None:  # the log is `HubServer.requests`
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client was killed or hung up, or a fault cuts it off: a test wants it so
            super().handle()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        given = self.headers.get("Authorization")
        self.entry = Request(self.command, path, self.headers.get("Range"), given is not None, self.on_cdn)
        self.hub.requests.append(self.entry)
        if not self.on_cdn:
            self.read_body()
        self._answer(path)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server asks for

    def _answer(self, path: str) -> None:
        if self.on_cdn:
            self.receive(path) if self.command == "PUT" else self._cdn_file(path)
        elif fault := self.hub.take_fault(path, with_status=True):
            self._json(fault.status or 500, {"error": fault.said}, fault.headers)
        elif self._token() not in (None, *self.hub.accounts):
            message = "Invalid credentials in Authorization header"
            self._json(401, {"error": message}, {"X-Error-Message": message})
        elif self.write_side(path):
            pass
        elif path.startswith("/api/models/"):
            self._api("", path.removeprefix("/api/models/").split("/"))
        elif path.startswith("/api/datasets/"):
            self._api("datasets/", path.removeprefix("/api/datasets/").split("/"))
        elif "/resolve/" in path:
            self._resolve(path)
        else:
            self._json(404, {"error": "Not Found"})

    def _token(self) -> str | None:
        given: str | None = self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given else None

    def _repo(self, repo_id: str) -> Repo | None:
        """The repo, or None after the answer that says why not."""
        if new := self.hub.renamed.get(repo_id):
            self._redirect(307, self.path.replace(repo_id, new, 1))
            return None
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._is_reader()):
            status = 404 if self._token() else 401
            self._json(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.disabled:
            message = "Access to this resource is disabled."
            self._json(403, {"error": message}, {"X-Error-Message": message})
            return None
        return repo

    def _api(self, kind: str, parts: list[str]) -> None:
        repo = self._repo(kind + "/".join(parts[:2]))
        if repo is None:
            return
        verb, revision = (parts[2] if len(parts) > 2 else "revision"), unquote(parts[3]) if len(parts) > 3 else "main"
        if verb == "refs":
            self._json(200, refs(repo))
        elif verb == "auth-check":
            self._json(200, {}) if self._may_read(repo) else self._gated(repo)
        elif (repo := repo.at(revision)) is None:
            self._no_revision(revision)
        elif verb == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["true"]) != ["false"]
            self._json(200, tree(repo, unquote("/".join(parts[4:])), recursive=recursive))
        elif verb == "paths-info":
            self._json(200, paths_info(repo, _paths_asked(self.body)))
        else:
            self._json(200, model_info(repo))

    def _is_reader(self) -> bool:
        return self._token() in (self.hub.token, self.hub.writer)

    def _may_read(self, repo: Repo) -> bool:
        return not repo.gated or self._is_reader()

    def _gated(self, repo: Repo) -> None:
        error = {"error": f"Access to {repo.repo_id} is restricted."}
        self._json(403 if self._token() else 401, error, {"X-Error-Code": "GatedRepo"})

    def _no_revision(self, revision: str) -> None:
        error = {"error": f"Invalid rev id: {revision}"}
        self._json(404, error, {"X-Error-Code": "RevisionNotFound"})

    def _resolve(self, path: str) -> None:
        repo_id, _, rest = path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        revision, name = unquote(revision), unquote(name)
        repo = self._repo(repo_id)
        if repo is None:
            return
        if not self._may_read(repo):
            self._gated(repo)
        elif (repo := repo.at(revision)) is None:
            self._no_revision(revision)
        elif name not in repo.files:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        elif fault := self.hub.take_fault(name, with_status=True):
            self._json(fault.status or 500, {"error": fault.said}, fault.headers)
        else:
            self._file(repo, name, repo.files[name])

    def _file(self, repo: Repo, name: str, blob: Blob) -> None:
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if not blob.lfs:
            self._body(name, blob, headers | {"ETag": f'"{blob.etag}"'})
            return
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size_bytes)}
        host = self.headers.get("Host", self.hub.host).rsplit(":", 1)[0]
        self._redirect(302, f"http://{host}:{self.hub.cdn_port}/{blob.sha256}/{quote(name)}", headers | linked)

    def _cdn_file(self, path: str) -> None:
        found = self.hub.find(path.split("/")[1])
        if found is None:
            self._json(403, {"error": "no such signed URL"})
        else:
            self._body(*found, {"ETag": f'"{found[1].etag}"', "Accept-Ranges": "bytes"})

    def _body(self, name: str, blob: Blob, headers: Mapping[str, str]) -> None:
        fault = self.hub.take_fault(name, with_status=False) if self.command == "GET" else None
        start, end = 0, blob.size_bytes
        asked = None if fault and fault.ignore_range else self.entry.range
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1 if last else end)
            if start >= blob.size_bytes:
                self._json(416, {"error": "range"}, {"Content-Range": f"bytes */{blob.size_bytes}"})
                return
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{blob.size_bytes}"}
        self._start(206 if asked else 200, {**headers, "Content-Length": str(end - start)})
        if self.command == "GET":
            self._send(blob.blocks(start, end), fault or Fault(0))

    def _send(self, blocks: Iterator[bytes], fault: Fault) -> None:
        if fault.together:
            fault.together.wait()
        for block in _spoiled(blocks, fault):
            self.wfile.write(block)
            self.entry.body_bytes += len(block)
            if fault.bytes_per_s:
                time.sleep(SLICE_S)
        if fault.truncate_after is not None:
            self.close_connection = True

    def _redirect(self, status: int, location: str, headers: Mapping[str, str] | None = None) -> None:
        self._start(status, {**(headers or {}), "Location": location, "Content-Length": "0"})

    def _json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        length = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._start(status, {**(headers or {}), **length})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _paths_asked(body: bytes) -> list[str]:
    """What a request for paths-info names, as JSON or as a form."""
    try:
        return list(json.loads(body)["paths"])
    except ValueError:
        return parse_qs(body.decode()).get("paths", [])


def _spoiled(blocks: Iterator[bytes], fault: Fault) -> Iterator[bytes]:
    """The blocks as the fault leaves them: a byte flipped, cut short, or in the pieces of a slow line."""
    left = fault.truncate_after
    piece = int(fault.bytes_per_s * SLICE_S) or 1 if fault.bytes_per_s else BLOCK_BYTES
    flip = fault.corrupt
    for block in blocks:
        if flip and block:
            block, flip = bytes([block[0] ^ 0xFF]) + block[1:], False
        if left is not None:
            block = block[:left]
            left -= len(block)
        yield from (block[i : i + piece] for i in range(0, len(block), piece))


def main() -> None:
    """Serve a folder as a repo, or an empty Hub, until Ctrl-C; the endpoint is printed on stdout."""
    parser = argparse.ArgumentParser(description="Serve a small Hub; hf_writer_0123456789 may write to it, as `me`.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repo", help="org/name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", help="make the repo private: only this token may read it")
    args = parser.parse_args()
    with HubServer(args.host, args.port, **({"token": args.token} if args.token else {})) as hub:
        if args.repo:
            hub.add_repo(args.repo, folder=args.folder, private=bool(args.token))
        print(hub.endpoint, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
