"""The write side of the small Hub in `hub_server.py`: repos, branches, pull requests, LFS uploads and commits.

As on the real one: a file is announced (`preupload`), its bytes are put to signed addresses of another host, whole or
in parts, and one commit names what was put. The store believes the name under which bytes arrive, as object stores do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from fnmatch import fnmatch
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub_repo import BLOCK_BYTES, Blob, Repo, is_lfs

if TYPE_CHECKING:
    from tests.hub_server import HubServer, Request

SIGNATURE = "signed-by-the-hub"
VERBS = ("settings", "preupload", "commit", "branch", "discussions")
INITIAL = {".gitattributes": Blob(b"*.gguf filter=lfs diff=lfs merge=lfs -text\n", lfs=False)}


@dataclass(frozen=True)
class Account:
    """Whose a token is, and what it may do: `read` or `write`."""

    name: str
    role: str
    orgs: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        return self.role == "write" and repo_id.split("/", maxsplit=1)[0] in (self.name, *self.orgs)


@dataclass
class Uploads:
    """What was uploaded, and how the Hub takes uploads.

    `hooks`: called once at "upload" (half of a body is read), "cut" (less of it will be), "commit" (before one) and
    "committed" (before the answer); one that raises ConnectionError takes the answer with it.
    """

    folder: Path
    part_bytes: int = 1_000_000  # what is larger is sent in parts
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)  # SHA-256 → code and message of the LFS batch
    hooks: dict[str, Callable[[], None]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, name: str) -> None:
        """The hook of this name, if it is still to be called."""
        self.hooks.pop(name, lambda: None)()

    def path_of(self, content: bytes, part: int = 0) -> str:
        """The path that this content is put to; of a larger one, its part (from 1)."""
        return f"/upload/{hashlib.sha256(content).hexdigest()}" + (f"/{part}" if part else "")

    def object(self, sha256: str) -> Path:
        """Where an uploaded object is."""
        return self.folder / sha256


class WriteSide:
    """What a request handler of the Hub does with requests that write."""

    hub: HubServer
    entry: Request
    body: bytes = b""
    path: str
    command: str
    headers: Message
    rfile: BufferedIOBase
    close_connection: bool
    _json: Callable[..., None]
    _token: Callable[[], str | None]
    _repo: Callable[[str], Repo | None]
    _no_revision: Callable[[str], None]
    _start: Callable[[int, Mapping[str, str]], None]

    def read_body(self) -> None:
        """Take the body of a request to the Hub itself, whoever will answer it."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.entry.received_bytes = len(self.body)

    def write_side(self, path: str) -> bool:
        """Answer, if this is a request of the write side."""
        parts = path.removeprefix("/api/models/").split("/")
        if path in ("/api/whoami-v2", "/api/validate-yaml", "/api/repos/create", "/api/complete_multipart"):
            getattr(self, "_" + path.rsplit("/", 1)[1].replace("-", "_"))()
        elif ".git/info/lfs/objects/" in path:
            repo_id, _, action = path[1:].partition(".git/info/lfs/objects/")
            self._in_repo(repo_id, "lfs_" + action, "")
        elif path.startswith("/api/models/") and len(parts) > 2 and parts[2] in VERBS:
            self._in_repo("/".join(parts[:2]), parts[2], unquote(parts[3]) if len(parts) > 3 else "")
        else:
            return False
        return True

    def _in_repo(self, repo_id: str, verb: str, revision: str) -> None:
        self.entry.said = None if verb in ("commit", "discussions") else json.loads(self.body or b"{}")
        if repo := self._repo(repo_id):
            getattr(self, "_" + verb)(repo, revision)

    def _account(self) -> Account:
        return self.hub.accounts.get(self._token() or "", Account("", "none"))

    def _refuse(self, status: int, message: str) -> None:
        self._json(status, {"error": message})

    def _may_write(self, repo_id: str, *, offers: bool = False) -> bool:
        """Whether this may go on; after the answer, if not. To offer a pull request is anybody's right."""
        account = self._account()
        if account.role == "write" and (offers or account.may_write(repo_id)):
            return True
        if account.role == "none":
            self._refuse(401, "Invalid username or password.")
        elif account.role != "write":
            self._refuse(403, "Forbidden: you must use a write token to upload to a repository.")
        else:
            self._refuse(403, f"Forbidden: pass `create_pr=1` as a query parameter to write to {repo_id}.")
        return False

    def _offers(self) -> bool:
        return "create_pr" in parse_qs(urlsplit(self.path).query)

    def _host(self) -> str:
        return f"http://{self.headers['Host']}"

    # ---- Accounts and repos --------------------------------------------------------------------------------------

    def _whoami_v2(self) -> None:
        account = self._account()
        if not account.name:
            self._refuse(401, "Invalid username or password.")
            return
        token = {"type": "access_token", "accessToken": {"displayName": "t", "role": account.role}}
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.orgs]
        self._json(200, {"type": "user", "name": account.name, "orgs": orgs, "auth": token})

    def _validate_yaml(self) -> None:
        content = str(json.loads(self.body)["content"])
        problems = [] if content.startswith("---\n") and "license: [" not in content else ['"license" must be a string']
        problems += _language_problems(content)
        errors = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        doubts = [] if "license:" in content else [{"message": "empty or missing yaml metadata in repo card"}]
        self._json(400, errors) if problems else self._json(200, {"errors": [], "warnings": doubts})

    def _create(self) -> None:
        said = self.entry.said = json.loads(self.body)
        account, repo_id = self._account(), f"{said['organization']}/{said['name']}"
        url = {"url": f"{self._host()}/{repo_id}"}
        if not account.may_write(repo_id):
            message = f'You don\'t have the rights to create a model under the namespace "{said["organization"]}"'
            self._refuse(403, message)
        elif repo_id in self.hub.repos:
            self._json(409, {"error": "You already created this model repo"} | url)
        else:
            repo = self.hub.add_repo(repo_id, private=said.get("visibility") == "private")
            self.hub.repos[repo_id] = replace(repo, files=dict(INITIAL))
            self._json(200, url)

    def _settings(self, repo: Repo, revision: str) -> None:
        if self._may_write(repo.repo_id):
            said = self.entry.said
            private = said["visibility"] == "private" if "visibility" in said else repo.private
            self.hub.repos[repo.repo_id] = replace(repo, gated=said.get("gated", repo.gated), private=private)
            self._json(200, said)

    def _branch(self, repo: Repo, revision: str) -> None:
        start = repo.at(self.entry.said.get("startingPoint", "main"))
        if not self._may_write(repo.repo_id):
            return
        if revision in repo.branches:
            self._refuse(409, "Reference already exists")
        elif start is None:
            self._no_revision(self.entry.said["startingPoint"])
        else:
            new = {"heads": {**repo.heads, revision: replace(start, heads={})}, "branches": (*repo.branches, revision)}
            self.hub.repos[repo.repo_id] = replace(repo, **new)
            self._json(200, {})

    def _discussions(self, repo: Repo, revision: str) -> None:
        author = parse_qs(urlsplit(self.path).query).get("author", [""])[0]
        found = [
            {"num": n, "title": title, "author": {"name": name}, "status": "open", "isPullRequest": True,
             "createdAt": "2026-01-01T00:00:00.000Z", "repo": {"name": repo.repo_id, "type": "model"}}
            for n, (name, title) in enumerate(repo.pulls, 1) if author in ("", name)
        ]  # fmt: skip
        self._json(200, {"discussions": found, "count": len(found), "start": 0})

    # ---- Uploads -------------------------------------------------------------------------------------------------

    def _preupload(self, repo: Repo, revision: str) -> None:
        there = repo.at(revision)
        if not self._may_write(repo.repo_id, offers=self._offers()):
            return
        if there is None:
            self._no_revision(revision)
            return
        ignore = self.entry.said.get("gitIgnore")
        if ignore is None:
            blob = there.files.get(".gitignore")
            ignore = b"".join(blob.blocks()).decode() if blob else ""
        self._json(200, {"files": [_mode(there, file, ignore.split()) for file in self.entry.said["files"]]})

    def _lfs_batch(self, repo: Repo, revision: str) -> None:
        said = self.entry.said
        if self._may_write(repo.repo_id, offers="ref" not in said):
            assert "xet" not in said["transfers"]
            objects = [self._instructions(repo.repo_id, o["oid"], o["size"]) for o in said["objects"]]
            self._json(200, {"transfer": "basic", "objects": objects})

    def _instructions(self, repo_id: str, oid: str, size: int) -> dict[str, Any]:
        uploads, answer = self.hub.uploads, {"oid": oid, "size": size}
        if oid in uploads.refusals:
            code, message = uploads.refusals[oid]
            return answer | {"error": {"code": code, "message": message}}
        if uploads.object(oid).exists() or self.hub.find(oid):
            return answer
        put = f"http://{self.headers['Host'].rsplit(':', 1)[0]}:{self.hub.cdn_port}/upload/{oid}"
        upload: dict[str, Any] = {"href": f"{put}?signature={SIGNATURE}"}
        if size > uploads.part_bytes:
            count = -(-size // uploads.part_bytes)
            parts = {f"{n:05d}": f"{put}/{n}?signature={SIGNATURE}" for n in range(1, count + 1)}
            upload = {
                "href": f"{self._host()}/api/complete_multipart?signature={SIGNATURE}",
                "header": {"chunk_size": str(uploads.part_bytes), **parts},
            }
        verify = {"href": f"{self._host()}/{repo_id}.git/info/lfs/objects/verify"}
        return answer | {"actions": {"upload": upload, "verify": verify}}

    def receive(self, path: str) -> None:
        """Take an object, or a part of one, at the signed address; the store asks nobody who sends it."""
        fault = self.hub.take_fault(path, with_status=False)
        stop = fault.cut_after if fault else None
        digest, left = hashlib.md5(), int(self.headers["Content-Length"])
        name = path.removeprefix("/upload/").replace("/", ".part")
        half, temporary = left // 2, self.hub.uploads.folder / f"{name}.tmp"
        with temporary.open("wb") as file:
            while left and (stop is None or self.entry.received_bytes < stop):
                block = self.rfile.read(min(BLOCK_BYTES, left, stop or left))
                left -= len(block)
                self.entry.received_bytes += len(block)
                if left <= half:
                    self.hub.uploads.call("upload")
                if not block:
                    break
                if fault and fault.corrupt:
                    block, fault = bytes([block[0] ^ 0xFF]) + block[1:], None
                digest.update(block)
                file.write(block)
        if left:
            self.hub.uploads.call("cut")
            raise ConnectionError
        self._received(path, temporary, name, digest.hexdigest())

    def _received(self, path: str, temporary: Path, name: str, etag: str) -> None:
        if fault := self.hub.take_fault(path, with_status=True):
            self._json(fault.status or 500, {"error": fault.said}, fault.headers)
        elif parse_qs(urlsplit(self.path).query).get("signature") != [SIGNATURE]:
            self._refuse(403, "SignatureDoesNotMatch")
        else:
            temporary.rename(self.hub.uploads.folder / name)
            self._start(200, {"ETag": f'"{etag}"', "Content-Length": "0"})

    def _complete_multipart(self) -> None:
        said = self.entry.said = json.loads(self.body)
        target = self.hub.uploads.object(said["oid"])
        parts = [target.with_name(f"{target.name}.part{part['partNumber']}") for part in said["parts"]]
        etags = [f'"{hashlib.md5(path.read_bytes()).hexdigest()}"' for path in parts]
        if etags != [part["etag"] for part in said["parts"]]:
            self._refuse(400, "InvalidPart")
            return
        with target.with_name(f"{target.name}.tmp").open("wb") as whole:
            for path in parts:
                whole.write(path.read_bytes())
                path.unlink()
        Path(whole.name).rename(target)
        self._json(200, {})

    def _lfs_verify(self, repo: Repo, revision: str) -> None:
        found = self.hub.uploads.object(self.entry.said["oid"])
        fits = found.exists() and found.stat().st_size == self.entry.said["size"]
        self._json(200, {}) if fits else self._refuse(404, "Object not found")

    # ---- Commits -------------------------------------------------------------------------------------------------

    def _commit(self, repo: Repo, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        self.entry.said = lines
        if not self._may_write(repo.repo_id, offers=self._offers()):
            return
        self.hub.uploads.call("commit")
        with self.hub.uploads.lock:
            self._add_commit(self.hub.repos[repo.repo_id], revision, lines[0]["value"], lines[1:])

    def _add_commit(self, repo: Repo, revision: str, header: Mapping[str, str], lines: list[dict[str, Any]]) -> None:
        there = repo.at(revision)
        if there is None:
            self._no_revision(revision)
        elif not self._offers() and header.get("parentCommit") not in (None, there.commit):
            self._refuse(412, "A commit has happened since. Please refresh and try again.")
        elif not lines or any(line["key"] not in ("file", "lfsFile", "deletedFile") for line in lines):
            self._refuse(400, "This Hub adds and removes files, and does nothing else.")
        elif missing := [v["value"]["path"] for v in lines if v["key"] == "lfsFile" and self._blob(v) is None]:
            self._refuse(400, f"Your push was rejected because an LFS pointer pointed to a file that does not exist: "
                              f"{missing}")  # fmt: skip
        else:
            changed = {v["value"]["path"]: None if v["key"] == "deletedFile" else self._blob(v) or Blob(b"", lfs=False)
                       for v in lines}  # fmt: skip
            self._keep_commit(repo, revision, header, changed)

    def _keep_commit(
        self, repo: Repo, revision: str, header: Mapping[str, str], files: Mapping[str, Blob | None]
    ) -> None:
        url, number = f"{self._host()}/{repo.repo_id}", len(repo.pulls) + 1
        branch = f"refs/pr/{number}" if self._offers() else revision
        pulls = (*repo.pulls, (self._account().name, header["summary"])) if self._offers() else repo.pulls
        new = replace(repo.after(files, branch), pulls=pulls)
        self.hub.repos[repo.repo_id] = new
        self.hub.uploads.call("committed")
        commit = new.heads[branch].commit if branch in new.heads else new.commit
        offered = {"pullRequestUrl": f"{url}/discussions/{number}"} if self._offers() else {}
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": f"{url}/commit/{commit}"} | offered)

    def _blob(self, line: Mapping[str, Any]) -> Blob | None:
        """The file that a line of a commit names; None: its bytes were never uploaded."""
        value = line["value"]
        if line["key"] == "file":
            return Blob(base64.b64decode(value["content"]), lfs=False)
        path = self.hub.uploads.object(value["oid"])
        found = self.hub.find(value["oid"])
        return Blob(path, lfs=True) if path.exists() else found[1] if found else None


def _mode(there: Repo, file: Mapping[str, Any], ignore: list[str]) -> dict[str, Any]:
    """What preupload answers for one file."""
    path, old = file["path"], there.files.get(file["path"])
    binary = b"\0" in base64.b64decode(file["sample"])
    return {
        "path": path, "uploadMode": "lfs" if binary or is_lfs(path, file["size"]) else "regular",
        "shouldIgnore": any(fnmatch(path, pattern) for pattern in ignore), "oid": old.etag if old else None,
    }


def _language_problems(card: str) -> list[str]:
    """The Hub takes codes of two or three letters as `language`, and everything else as `language_bcp47`."""
    head = yaml.safe_load(card.split("---\n")[1]) if card.count("---\n") > 1 else None
    named = head.get("language", []) if isinstance(head, dict) else []
    wrong = [name for name in named if not re.fullmatch("[a-z]{2,3}|code|multilingual", str(name))]
    return [f'"language" with value "{name}" is not an ISO 639-1, 639-2 or 639-3 code' for name in wrong]
