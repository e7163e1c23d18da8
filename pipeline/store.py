"""The artifact store: what stages made, under `artifacts/<org>/<name>/<commit12>/`.

    stages/<label>-<key12>/      one finished stage: request.json, result.json, files/
    stages/.<label>-<key12>/     one unfinished stage; it never counts
    <name>-<QUANT>.gguf          a hard link into a finished stage, made when the file is verified
    <name>.imatrix.gguf          the importance matrix that files were made with
    eval/<suite>/                a copy of what the last report on this suite left
    manifest.json                what was made, from what, by what
    release/                     what would be published: models as hard links, card, page

A stage is finished exactly when its folder has its final name: outputs are synced to disk first, then one
rename makes them count. So a stage that was killed at any moment leaves nothing that looks finished.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from pipeline.contract import ExitCode, FileEntry, StageRequest, StageResult, digest_of_files
from pipeline.errors import BadSource, QuantyardError
from pipeline.names import shown

_WAIT_STEP_S = 0.5
_MODEL_NAME = re.compile(r"(?![.-])[A-Za-z0-9._-]{1,96}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of the Hub; the digest of files


@dataclass(frozen=True)
class Artifact:
    """A set of files named by one digest, and where this machine keeps it.

    `whole_folder` is False where `folder` holds other things too: then only `files` belong to it. `places` is where
    those of a folder of links really are, by path.
    """

    digest: str
    files: tuple[FileEntry, ...]
    folder: Path
    whole_folder: bool = True
    places: Mapping[str, Path] = field(default_factory=dict, compare=False)

    def place_of(self, path: str) -> Path:
        """Where this file of it really is."""
        return self.places.get(path, self.folder / path)

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True)
class ModelId:
    """Which model, at which state: a Hub commit, or the digest of a local source's files. Each part names a folder.

    Raises:
        BadSource: one of them cannot.
    """

    org: str
    name: str
    commit: str

    def __post_init__(self) -> None:
        """Whatever these were made of: no path, no hidden name, no option."""
        for part, pattern in ((self.org, _MODEL_NAME), (self.name, _MODEL_NAME), (self.commit, _COMMIT)):
            if not pattern.fullmatch(part):
                raise BadSource(f"{shown(part)} cannot name a folder of a model.", "Name one: MODEL=org/name")

    @property
    def folder(self) -> Path:
        """Where its artifacts are, relative to the store."""
        return Path(self.org) / self.name / self.commit[:12]


@dataclass(frozen=True)
class FinishedStage:
    """A stage that counts: its result and its outputs."""

    result: StageResult
    artifact: Artifact


@dataclass(frozen=True)
class Workspace:
    """Where one unfinished stage works: `/in` and `/out` as the stage will see them."""

    in_dir: Path
    out_dir: Path


class ModelStore:
    """The part of the store that holds one model at one commit."""

    def __init__(self, root: Path, model: ModelId) -> None:
        self.root = root
        self.folder = root / model.folder
        self._lock_path = root / model.org / model.name / ".lock"

    @contextmanager
    def locked(self, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the model's lock. Another holder is waited for, and named to `on_wait` once."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock, told = FileLock(self._lock_path), False
        while True:
            try:
                lock.acquire(timeout=_WAIT_STEP_S if told else 0)
                break
            except Timeout:
                if not told:
                    on_wait(self._lock_holder())
                told = True
        try:
            self._lock_path.with_name(".lock-holder").write_text(str(os.getpid()))
            yield
        finally:
            lock.release()

    def _lock_holder(self) -> str:
        try:
            return f"process {int(self._lock_path.with_name('.lock-holder').read_text())}"
        except (OSError, ValueError):
            return "another process"

    def finished(self, label: str, key: str) -> FinishedStage | None:
        """The finished stage of this key, or None if it has not been run to its end. The key alone says what was made:
        under another label it is the same.
        """
        if found := self._read(self._final(label, key)):
            return found
        others = sorted((self.folder / "stages").glob(f"[!.]*-{key[:12]}"))
        return next((found for folder in others if (found := self._read(folder))), None)

    def _read(self, folder: Path) -> FinishedStage | None:
        try:
            result = StageResult.model_validate_json((folder / "result.json").read_bytes())
        except (OSError, ValidationError):
            return None
        files = folder / "files"
        if not all(_is_there(files, entry) for entry in result.outputs):
            return None  # somebody removed or changed a file: make it again
        return FinishedStage(result, Artifact(digest_of_files(result.outputs), result.outputs, files))

    def begin(
        self, label: str, key: str, request: StageRequest, inputs: Mapping[str, Artifact], resumable: bool
    ) -> Workspace:
        """A folder to work in. What a killed run left there is kept only if the stage can resume from it."""
        partial = self._partial(label, key)
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        space = Workspace(partial / "in", partial / "out")
        shutil.rmtree(space.in_dir, ignore_errors=True)
        space.in_dir.mkdir(parents=True)
        space.out_dir.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            (space.out_dir / "result.json").unlink()
        (space.in_dir / "request.json").write_text(request.model_dump_json(indent=2) + "\n")
        known = {name: [f.model_dump(mode="json") for f in artifact.files] for name, artifact in inputs.items()}
        (space.in_dir / "inputs.json").write_text(json.dumps(known) + "\n")  # a stage need not hash 40 GB again
        return space

    def fill(self, space: Workspace, file: Path, result: StageResult) -> None:
        """Give a workspace the one file and the result that another run made for it."""
        (output,) = result.outputs
        target = space.out_dir / "files" / output.path
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        (space.out_dir / "result.json").write_text(result.model_dump_json(indent=2) + "\n")

    def finish(self, label: str, key: str, space: Workspace, result: StageResult) -> FinishedStage:
        """Make a stage count: check that its outputs are there, sync them, rename."""
        self._check_outputs(space, result)
        shutil.copyfile(space.in_dir / "request.json", space.out_dir / "request.json")
        for path in (*(space.out_dir / "files" / f.path for f in result.outputs), space.out_dir / "result.json"):
            _sync(path)
        final = self._final(label, key)
        shutil.rmtree(final, ignore_errors=True)
        space.out_dir.rename(final)
        _sync(final.parent)
        shutil.rmtree(self._partial(label, key), ignore_errors=True)
        finished = self.finished(label, key)
        if finished is None:
            raise QuantyardError(f"{label}: the files vanished from {final} while they were being kept.")
        return finished

    def discard(self, label: str, key: str) -> None:
        """Remove what an unfinished stage left."""
        shutil.rmtree(self._partial(label, key), ignore_errors=True)

    def partial_bytes(self, label: str, key: str) -> int:
        """Size of what an unfinished stage left to resume from."""
        files = (self._partial(label, key) / "out" / "files").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    def publish(self, source: Path, name: str) -> Path:
        """Give one output of a stage its final name beside the manifest: a hard link, so that no byte is copied."""
        target, temporary = self.folder / name, self.folder / f".{name}.tmp"
        if target.exists() and target.samefile(source):
            return target
        with suppress(FileNotFoundError):
            temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            temporary.symlink_to(os.path.relpath(source, self.folder))
        temporary.rename(target)
        return target

    def publish_copy(self, source: Path, name: str) -> Path:
        """The same for a file of the user's, who may change it later: a copy."""
        target, temporary = self.folder / name, self.folder / f".{name}.tmp"
        if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
            shutil.copyfile(source, temporary)
            _sync(temporary)
            temporary.rename(target)
        return target

    def publish_folder(self, finished: FinishedStage, name: str) -> Path:
        """Give all outputs a folder of their own: copies, which people may edit. Never a part of them is seen."""
        target = self.folder / name
        if _is_copy(target, finished.artifact):
            return target
        temporary, old = target.with_name(f".{target.name}.tmp"), target.with_name(f".{target.name}.old")
        shutil.rmtree(temporary, ignore_errors=True)
        for entry in finished.artifact.files:
            path = temporary / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(finished.artifact.folder / entry.path, path)
            _sync(path)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        return target

    def write(self, name: str, text: str) -> None:
        """Write a small file of this model."""
        write_file(self.folder / name, text.encode())

    def set_aside(self, name: str) -> None:
        """Keep a file that cannot be read under another name, if it is there: nothing is written over it."""
        path = self.folder / name
        if path.exists():
            path.rename(path.with_name(f"{path.stem}.unreadable-{int(path.stat().st_mtime)}{path.suffix}"))

    def _check_outputs(self, space: Workspace, result: StageResult) -> None:
        for entry in result.outputs:
            if not _is_there(space.out_dir / "files", entry):
                raise QuantyardError(f"{result.stage} named an output that is not there: {entry.path}.")
        if result.exit_code is not ExitCode.DONE:
            raise QuantyardError(f"{result.stage} did not end well, so it cannot count as finished.")

    def _final(self, label: str, key: str) -> Path:
        return stage_folder(self.folder, label, key)

    def _partial(self, label: str, key: str) -> Path:
        return self.folder / "stages" / f".{_slug(label)}-{key[:12]}"


def write_file(path: Path, content: bytes) -> None:
    """Write a small file so that it is either the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    _sync(temporary)
    temporary.rename(path)
    _sync(path.parent)


def stage_folder(model_folder: Path, label: str, key: str) -> Path:
    """Where a finished stage is kept."""
    return model_folder / "stages" / f"{_slug(label)}-{key[:12]}"


class HashCache:
    """SHA-256 of local files by (path, size, time of change), so that a folder of many GB is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            loaded = json.loads(path.read_bytes())
        except (OSError, ValueError):
            loaded = {}
        self._known: dict[str, str] = loaded if isinstance(loaded, dict) else {}

    def sha256(self, path: Path, compute: Callable[[Path], str]) -> str:
        """The file's hash, computed only when the file is new or changed."""
        stat = path.stat()
        mark = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if mark not in self._known:
            self._known[mark] = compute(path)
            self._save()
        return self._known[mark]

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._known, indent=0))
        temporary.rename(self._path)


def _is_there(folder: Path, entry: FileEntry) -> bool:
    """Whether this file is really in the folder. A link is not: what it points at is not the stage's own."""
    path = folder / entry.path
    return path.is_file() and not path.is_symlink() and path.stat().st_size == entry.size_bytes


def _is_copy(folder: Path, artifact: Artifact) -> bool:
    """Whether the folder holds these files, byte for byte, and no others."""
    names = sorted(f.path for f in artifact.files)
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return there == names and filecmp.cmpfiles(artifact.folder, folder, names, shallow=False)[0] == names


def _slug(label: str) -> str:
    return label.replace(" ", "-")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
