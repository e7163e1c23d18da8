"""The store of stages and their outputs, under `artifacts/<org>/<name>/<commit12>/`.

    stages/<label>-<key12>/      one finished stage: request.json, result.json, stamps.json, files/
    stages/.<label>-<key12>/     one unfinished stage
    <name>-<QUANT>.gguf          a hard link into a finished stage, made when the file is verified
    <name>.imatrix.gguf          the importance matrix that files were made with
    eval/<suite>/                a copy of the last report on this suite
    manifest.json                which files were made, from which inputs, by which tools
    release/                     what would be published: models as hard links, card, page

A stage is finished exactly when its folder has its final name. Outputs are synced to disk first and then published with
one rename, so a stage that is killed at any moment leaves nothing that looks finished. The stage itself cannot write to
that folder: its files are moved there after they are checked (`take_outputs.py`), and everything else is removed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from quantyard.errors import QuantyardError
from quantyard.files.atomic import sync_file, write_file_atomically
from quantyard.files.safe_files import SafeFolder, UnsafeFile, remove_tree
from quantyard.formats.finite_json import dump_finite_json
from quantyard.protocol.allowed_outputs import Leaves
from quantyard.protocol.base import StageRequest, StageResult, files_digest
from quantyard.protocol.facts import check_result_facts
from quantyard.protocol.stage_result import MAX_RESULT_BYTES, RESULT, parse_stage_result
from quantyard.store.artifact import Artifact, FinishedStage, ModelId, Workspace
from quantyard.store.file_stamps import (
    STAMPS,
    file_stamps_text,
    matches_file_stamp,
    matches_stored_hash,
    read_file_stamps,
)
from quantyard.store.take_outputs import FILES, store_stage_outputs, tame_unfinished_outputs, unfinished_output_bytes

_WAIT_STEP_S = 0.05


class ModelStore:
    """The part of the store that holds one model at one commit."""

    def __init__(self, root: Path, model: ModelId) -> None:
        self.root = root
        self.folder = root / model.folder
        self._lock_path = root / model.org / model.name / ".lock"
        self.changed: list[str] = []  # finished stages that no longer count, with the reason

    @contextmanager
    def locked(self, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the model's lock. If another process holds it, call `on_wait` once with its name, and wait."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        told = False
        with self._lock_path.open("ab") as lock:  # closing it unlocks it, also when the process is killed
            while not _is_locked_now(lock):
                if not told:
                    on_wait(self._lock_holder())
                told = True
                time.sleep(_WAIT_STEP_S)
            self._lock_path.with_name(".lock-holder").write_text(str(os.getpid()))
            yield

    def _lock_holder(self) -> str:
        try:
            return f"process {int(self._lock_path.with_name('.lock-holder').read_text())}"
        except (OSError, ValueError):
            return "another process"

    def finished(self, label: str, key: str) -> FinishedStage | None:
        """The finished stage of this key, or None. Only the key matters: a stage with another label has the same
        outputs.
        """
        if found := self._read(self._final(label, key)):
            return found
        others = sorted((self.folder / "stages").glob(f"[!.]*-{key[:12]}"))
        return next((found for folder in others if (found := self._read(folder))), None)

    def _read(self, folder: Path) -> FinishedStage | None:
        try:
            with SafeFolder.opened(folder) as stage, stage.folder(FILES) as files:
                result = parse_stage_result(stage.read(RESULT, MAX_RESULT_BYTES))
                check_result_facts(result)
                if problem := self._changed_in(folder, files, result, stage.stat(RESULT).st_mtime_ns):
                    self.changed += [problem] if problem not in self.changed else []
                    return None
        except (OSError, ValueError):
            return None
        return FinishedStage(result, Artifact(files_digest(result.outputs), result.outputs, folder / FILES))

    def _changed_in(self, folder: Path, files: SafeFolder, result: StageResult, made_ns: int) -> str:
        """Which file was removed or changed after the stage made it; "" for none. A file that only looks changed, as in
        a copy of the store, is hashed once, and its new stamp is kept.
        """
        stamps, hashed = read_file_stamps(folder), False
        for entry in result.outputs:
            try:
                unchanged = matches_file_stamp(files, entry, stamps, made_ns)
                if not unchanged and not matches_stored_hash(files, entry):
                    return f"{folder.name}: {entry.path} was changed after it was made"
            except UnsafeFile as error:
                return f"{folder.name}: {error}"
            hashed |= not unchanged
        if hashed:
            with suppress(OSError):  # in a read-only store, files are hashed each time
                write_file_atomically(folder / STAMPS, file_stamps_text(files, result.outputs).encode())
        return ""

    def begin(
        self, label: str, key: str, request: StageRequest, inputs: Mapping[str, Artifact], resumable: bool
    ) -> Workspace:
        """Make the stage's workspace. If the stage is resumable, the plain files that an interrupted run left there are
        kept.
        """
        partial = self._partial(label, key)
        space = Workspace(partial / "in", partial / "out", request)
        if resumable and not partial.is_symlink():
            for path in partial.glob("*"):
                if path != space.out_dir:
                    remove_tree(path)
            tame_unfinished_outputs(space.out_dir)
        else:
            remove_tree(partial)
        space.in_dir.mkdir(parents=True)
        space.out_dir.mkdir(exist_ok=True)
        (space.in_dir / "request.json").write_text(_stored_stage_record(request))
        known = {name: [f.model_dump(mode="json") for f in artifact.files] for name, artifact in inputs.items()}
        # With the hashes of its inputs, a stage need not hash 40 GB again.
        (space.in_dir / "inputs.json").write_text(dump_finite_json(known) + "\n")
        return space

    def take(self, label: str, space: Workspace, result: StageResult, leaves: Leaves) -> StageResult:
        """Check the stage's files and move them to `kept`; returns the result with their SHA-256.

        Raises:
            ResultRefused: the files differ from the result, or the stage may not leave them.
            OutOfResources: the disk is full.
        """
        remove_tree(space.kept_dir)
        return store_stage_outputs(label, space.out_dir, space.kept_dir, result, leaves)

    def give(self, space: Workspace, file: Path, result: StageResult) -> None:
        """Move the one output that another run made for this stage into its workspace."""
        (output,) = result.outputs
        target = space.out_dir / FILES / output.path
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)

    def finish(self, label: str, key: str, space: Workspace, result: StageResult, leaves: Leaves) -> FinishedStage:
        """Finish a stage: take its files, sync, rename.

        Raises:
            ResultRefused, OutOfResources: see `take`.
        """
        taken, kept = self.take(label, space, result, leaves), space.kept_dir
        write_file_atomically(kept / "request.json", _stored_stage_record(space.request).encode())
        write_file_atomically(kept / RESULT, _stored_stage_record(taken).encode())
        with SafeFolder.opened(kept / FILES) as files:
            write_file_atomically(kept / STAMPS, file_stamps_text(files, taken.outputs).encode())
        final = self._final(label, key)
        remove_tree(final)
        kept.rename(final)
        sync_file(final.parent)
        remove_tree(self._partial(label, key))
        finished = self.finished(label, key)
        if finished is None:
            raise QuantyardError(f"{label}: the files vanished from {final} while they were being kept.")
        return finished

    def discard(self, label: str, key: str) -> None:
        """Remove what an unfinished stage left."""
        with suppress(OSError):
            remove_tree(self._partial(label, key))

    def clear_unfinished(self, resumable: Collection[str]) -> None:
        """Remove the unfinished stages of killed runs, except those that can be resumed. The caller must hold the lock,
        so that no other process works here.

        Args:
            resumable: names of the stages that can resume.
        """
        for partial in (self.folder / "stages").glob(".*-*"):
            stage = partial.name[1:].partition("-")[0]
            if stage not in resumable or partial.with_name(partial.name[1:]).exists():
                with suppress(OSError):
                    remove_tree(partial)

    def partial_bytes(self, label: str, key: str) -> int:
        """Size of the files that an unfinished stage can resume from."""
        return unfinished_output_bytes(self._partial(label, key) / "out")

    def _final(self, label: str, key: str) -> Path:
        return stored_stage_folder(self.folder, label, key)

    def _partial(self, label: str, key: str) -> Path:
        return self.folder / "stages" / f".{_stage_folder_slug(label)}-{key[:12]}"


def stored_stage_folder(model_folder: Path, label: str, key: str) -> Path:
    """The folder of a finished stage."""
    return model_folder / "stages" / f"{_stage_folder_slug(label)}-{key[:12]}"


def _is_locked_now(file: IO[bytes]) -> bool:
    """Take the lock on a file; False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stored_stage_record(record: StageRequest | StageResult) -> str:
    return record.model_dump_json(indent=2) + "\n"


def _stage_folder_slug(label: str) -> str:
    return label.replace(" ", "-")
