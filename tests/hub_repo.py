"""The repos of the small Hub in `hub_server.py`: files in memory or on disk, and how its API describes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

BLOCK_BYTES = 256 * 1024
LFS_ENDINGS = (".safetensors", ".gguf", ".bin", ".model", ".pt", ".pth", ".h5", ".onnx", ".msgpack")
LFS_FROM_BYTES = 10_000_000


def is_lfs(name: str, size_bytes: int) -> bool:
    """Whether the Hub's .gitattributes would store it with LFS."""
    return name.endswith(LFS_ENDINGS) or size_bytes >= LFS_FROM_BYTES


@dataclass(frozen=True)
class Blob:
    """One file of a repo: bytes in memory, or a path whose bytes stay on disk."""

    content: bytes | Path
    lfs: bool

    @cached_property
    def size_bytes(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to (not including) `end`, in pieces."""
        end = self.size_bytes if end is None else end
        if isinstance(self.content, bytes):
            yield self.content[start:end]
            return
        with self.content.open("rb") as stream:
            stream.seek(start)
            while start < end and (block := stream.read(min(BLOCK_BYTES, end - start))):
                start += len(block)
                yield block

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    @cached_property
    def git_oid(self) -> str:
        """The name git gives the file (of an LFS file: its pointer, here only something stable)."""
        if self.lfs:
            return hashlib.sha1(self.sha256.encode()).hexdigest()
        digest = hashlib.sha1(f"blob {self.size_bytes}\0".encode())
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Repo:
    """One model repo at one commit, that of `main`; a branch that went its own way is in `heads`."""

    repo_id: str
    files: dict[str, Blob]
    gated: bool | str
    private: bool
    disabled: bool
    license: str | None
    branches: tuple[str, ...]
    tags: tuple[str, ...]
    parent: Repo | None = None  # one commit earlier
    heads: Mapping[str, Repo] = field(default_factory=dict)
    pulls: tuple[tuple[str, str], ...] = ()  # author and title of each; number n is the branch refs/pr/n

    @cached_property
    def commit(self) -> str:
        listing = "".join(f"{name} {blob.etag}\n" for name, blob in sorted(self.files.items()))
        below = f"{self.parent.commit}\n" if self.parent else ""
        return hashlib.sha1(f"{below}{self.repo_id}\n{listing}".encode()).hexdigest()

    def at(self, revision: str) -> Repo | None:
        """This repo as a branch, tag or commit of it has it; None: there is no such revision."""
        if revision in self.heads:
            return self.heads[revision]
        if revision in (*self.branches, *self.tags):
            return self
        return next((repo for repo in self.snapshots() if repo.commit == revision), None)

    def snapshots(self) -> Iterator[Repo]:
        """Every commit of every branch."""
        for head in (self, *self.heads.values()):
            at: Repo | None = head
            while at is not None:
                yield at
                at = at.parent

    def after(self, files: Mapping[str, Blob | None], branch: str = "main") -> Repo:
        """One commit later: files added to the branch (made if it is missing), replaced, or (None) removed."""
        old = self.at(branch) or self
        kept = {path: blob for path, blob in {**old.files, **files}.items() if blob is not None}
        new = replace(old, files=kept, parent=old, heads={})
        if branch == "main":
            return replace(new, heads=self.heads, pulls=self.pulls, branches=self.branches)
        branches = self.branches if branch in self.branches else (*self.branches, branch)
        return replace(self, heads={**self.heads, branch: new}, branches=branches)

    @property
    def name(self) -> str:
        """As the API calls it: a data set without its prefix."""
        return self.repo_id.removeprefix("datasets/")

    @cached_property
    def parameters(self) -> dict[str, int]:
        """dtype → number of parameters, as the Hub counts them from the safetensors headers."""
        counts: dict[str, int] = {}
        for name, blob in self.files.items():
            if "/" not in name and name.endswith(".safetensors"):
                for dtype, elements in _elements(blob):
                    counts[dtype] = counts.get(dtype, 0) + elements
        return counts


def _elements(blob: Blob) -> Iterator[tuple[str, int]]:
    head = b"".join(blob.blocks(0, 8))
    length = int.from_bytes(head, "little")
    try:
        header = json.loads(b"".join(blob.blocks(8, 8 + length))) if length < blob.size_bytes else {}
    except ValueError:
        return  # not a real safetensors file: the Hub counts nothing either
    for name, tensor in header.items():
        if name != "__metadata__":
            elements = 1
            for length in tensor["shape"]:
                elements *= length
            yield tensor["dtype"], elements


def model_info(repo: Repo) -> dict[str, Any]:
    """What /api/models/<id>/revision/<rev>?blobs=true answers."""
    info: dict[str, Any] = {
        "_id": repo.commit[:24], "id": repo.name, "modelId": repo.name, "sha": repo.commit,
        "private": repo.private, "gated": "manual" if repo.gated is True else repo.gated, "disabled": repo.disabled,
        "tags": [f"license:{repo.license}"] if repo.license else [], "downloads": 0, "likes": 0,
        "siblings": [_sibling(name, blob) for name, blob in repo.files.items()],
    }
    if repo.license:
        info["cardData"] = {"license": repo.license}
    if repo.parameters:
        info["safetensors"] = {"parameters": repo.parameters, "total": sum(repo.parameters.values())}
    return info


def _sibling(name: str, blob: Blob) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name, "size": blob.size_bytes, "blobId": blob.git_oid}
    if blob.lfs:
        sibling["lfs"] = {"sha256": blob.sha256, "size": blob.size_bytes, "pointerSize": 134}
    return sibling


def tree(repo: Repo, folder: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
    """What /api/models/<id>/tree/<rev>/<folder> answers."""
    top = folder.strip("/") + "/" if folder.strip("/") else ""
    inside = [name for name in repo.files if name.startswith(top)]
    folders = {top + name.removeprefix(top).split("/")[0] for name in inside if "/" in name.removeprefix(top)}
    files = [name for name in inside if recursive or "/" not in name.removeprefix(top)]
    return [_folder(name) for name in sorted(folders)] + [_file(name, repo.files[name]) for name in files]


def paths_info(repo: Repo, paths: list[str]) -> list[dict[str, Any]]:
    """What /api/models/<id>/paths-info/<rev> answers; a path that is not there is left out."""
    files = [_file(name, repo.files[name]) for name in paths if name in repo.files]
    return files + [_folder(p) for p in paths if any(name.startswith(p + "/") for name in repo.files)]


def _folder(name: str) -> dict[str, Any]:
    return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}


def _file(name: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": blob.size_bytes, "oid": blob.git_oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size_bytes, "pointerSize": 134}
    return entry


def refs(repo: Repo) -> dict[str, Any]:
    """What /api/models/<id>/refs answers."""
    def named(kind: str, names: tuple[str, ...]) -> list[dict[str, str]]:
        heads = {name: (repo.at(name) or repo).commit for name in names}
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": heads[n]} for n in names]

    return {"branches": named("heads", repo.branches), "tags": named("tags", repo.tags), "converts": []}
