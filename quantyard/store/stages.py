"""The store of stages and their outputs, under `artifacts/<org>/<name>/<commit12>/`.

    stages/<label>-<key12>/      one finished stage: request.json, result.json, stamps.json, files/
    stages/.<label>-<key12>.<host>-<pid>-<random>/   one attempt at it, unfinished
    differing/<label>-<key12>.…/ outputs of an attempt that ended second, with other bytes
    <name>-<QUANT>.gguf          a hard link into a finished stage, made when the file is verified
    <name>.imatrix.gguf          the importance matrix that files were made with
    eval/<suite>/                a copy of the last report on this suite
    manifest.json                which files were made, from which inputs, by which tools
    release/                     what would be published: models as hard links, card, page

A stage is finished exactly when its folder has its final name. Outputs are synced to disk first and then published with
one rename, so a stage that is killed at any moment leaves nothing that looks finished. Any number of processes, on any
hosts, may run one stage: each has a folder of its own, and the rename of the first wins, since none replaces a folder
that has contents. The stage itself cannot write to that folder: its files are moved there after they are checked
(`take_outputs.py`), and everything else is removed.
"""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from quantyard.errors import QuantyardError
from quantyard.files.atomic import sync_file, write_file_atomically
from quantyard.files.safe_files import SafeFolder, UnsafeFile, remove_tree
from quantyard.files.unique_names import is_left_temporary, new_process_mark, parse_process_mark
from quantyard.formats.finite_json import dump_finite_json
from quantyard.protocol.allowed_outputs import Leaves
from quantyard.protocol.base import StageRequest, StageResult, files_digest
from quantyard.protocol.checked_facts import check_result_facts
from quantyard.protocol.stage_result import MAX_RESULT_BYTES, RESULT, parse_stage_result
from quantyard.store.artifact import Artifact, FinishedStage, ModelId, Workspace
from quantyard.store.attempt_folders import AttemptFolders
from quantyard.store.differing import DIFFERING_FOLDER
from quantyard.store.file_stamps import (
    STAMPS,
    file_stamps_text,
    matches_file_stamp,
    matches_stored_hash,
    read_file_stamps,
)
from quantyard.store.take_outputs import FILES, store_stage_outputs, tame_unfinished_outputs, unfinished_output_bytes

_WAIT_STEP_S: Final = 0.05
_IS_THERE: Final = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # a mount that cannot lock


class ModelStore:
    """The part of the store that holds one model at one commit."""

    def __init__(self, root: Path, model: ModelId) -> None:
        self.root = root
        self.folder = root / model.folder
        self._lock_path = root / model.org / model.name / ".lock"
        self.changed: list[str] = []  # finished stages that no longer count, with the reason
        self.differing: list[str] = []  # attempts that ended second with other bytes, with their place
        self._attempts = AttemptFolders(self.folder / "stages")

    @contextmanager
    def locked(self, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the model's lock. If another process holds it, call `on_wait` once with its name, and wait.

        It only saves duplicate work: where a mount cannot lock, or only within a host, results are right all the same.
        """
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        told = False
        with self._lock_path.open("ab") as lock:  # closing it unlocks it, also when the process is killed
            while not _is_locked_now(lock):
                if not told:
                    on_wait(self._lock_holder())
                told = True
                time.sleep(_WAIT_STEP_S)
            self._lock_path.with_name(".lock-holder").write_text(str(new_process_mark()))
            try:
                yield
            finally:
                self._attempts.end_all()

    def _lock_holder(self) -> str:
        try:
            text = self._lock_path.with_name(".lock-holder").read_text()
            mark = parse_process_mark(text)
            return f"process {mark.pid} on {mark.host}" if mark else f"process {int(text)}"  # of an earlier Quantyard
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
        """Make a workspace for one attempt at a stage. If the stage is resumable, it gets the plain files that an
        abandoned attempt left.
        """
        left = self._adopted(label, key) if resumable else None
        own = left or self._attempts.new(_stored_stage_name(label, key))
        space = Workspace(own / "in", own / "out", request)
        if left is not None:
            for path in left.glob("*"):
                if path != space.out_dir:
                    remove_tree(path)
            tame_unfinished_outputs(space.out_dir)
        space.in_dir.mkdir()
        space.out_dir.mkdir(exist_ok=True)
        (space.in_dir / "request.json").write_text(_stored_stage_record(request))
        known = {name: [f.model_dump(mode="json") for f in artifact.files] for name, artifact in inputs.items()}
        # With the hashes of its inputs, a stage need not hash 40 GB again.
        (space.in_dir / "inputs.json").write_text(dump_finite_json(known) + "\n")
        return space

    def _adopted(self, label: str, key: str) -> Path | None:
        """What an abandoned attempt left, as this process' own; of several, that of the most bytes."""
        name = _stored_stage_name(label, key)
        left = [path for _, path in self._attempts.abandoned(name)]
        for path in sorted(left, key=lambda path: unfinished_output_bytes(path / "out"), reverse=True):
            if (own := self._attempts.adopt(path, name)) is not None:
                return own
        return None

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
        """Finish a stage: take its files, sync, rename, unless another attempt has finished it.

        Returns:
            The stage as it counts: this attempt's, or that of the first.

        Raises:
            ResultRefused, OutOfResources: see `take`.
        """
        taken, kept = self.take(label, space, result, leaves), space.kept_dir
        write_file_atomically(kept / "request.json", _stored_stage_record(space.request).encode())
        write_file_atomically(kept / RESULT, _stored_stage_record(taken).encode())
        with SafeFolder.opened(kept / FILES) as files:
            write_file_atomically(kept / STAMPS, file_stamps_text(files, taken.outputs).encode())
        final = self._final(label, key)
        first = self._placed(kept, final)
        if first is not None and files_digest(taken.outputs) != first.artifact.digest:
            self._keep_differing(label, space)
        self.discard(space)
        finished = self.finished(label, key)
        if finished is None:
            raise QuantyardError(f"{label}: the files vanished from {final} while they were being kept.")
        return finished

    def _placed(self, kept: Path, final: Path) -> FinishedStage | None:
        """Rename a complete stage to its final name, unless there is one that counts: then return that."""
        while True:
            try:
                kept.rename(final)
            except OSError as error:
                if error.errno not in _IS_THERE:
                    raise
            else:
                sync_file(final.parent)
                return None
            if (first := self._read(final)) is not None and not first.is_provisional:
                return first
            with suppress(FileNotFoundError):  # it does not count; another process may move it first
                final.rename(kept.with_name(f"replaced-{new_process_mark()}"))

    def _keep_differing(self, label: str, space: Workspace) -> None:
        aside = self.folder / DIFFERING_FOLDER / space.folder.name[1:]
        aside.parent.mkdir(exist_ok=True)
        space.kept_dir.rename(aside)
        self.differing.append(
            f"{label}: another process finished it first, with other bytes. This run's outputs are kept as {aside}"
        )

    def leave(self, space: Workspace) -> None:
        """End an attempt without a result; what it left may be resumed."""
        self._attempts.end(space.folder)

    def discard(self, space: Workspace) -> None:
        """End an attempt and remove what it left."""
        with suppress(OSError):
            remove_tree(space.folder)
        self._attempts.end(space.folder)

    def clear_unfinished(self, resumable: Collection[str]) -> None:
        """Remove what killed runs left, except the attempts that can be resumed. Those of running processes stay.

        Args:
            resumable: names of the stages that can resume.
        """
        for name, left in self._attempts.abandoned():
            if name.partition("-")[0] not in resumable or left.with_name(name).exists():
                with suppress(OSError):
                    remove_tree(left)
        for temporary in (*self.folder.glob(".*.tmp"), *self.folder.glob("*/.*.tmp")):
            with suppress(OSError):
                if is_left_temporary(temporary):
                    remove_tree(temporary)

    def partial_bytes(self, label: str, key: str) -> int:
        """Size of the files that an attempt can resume from."""
        left = self._attempts.abandoned(_stored_stage_name(label, key))
        return max((unfinished_output_bytes(path / "out") for _, path in left), default=0)

    def _final(self, label: str, key: str) -> Path:
        return stored_stage_folder(self.folder, label, key)


def stored_stage_folder(model_folder: Path, label: str, key: str) -> Path:
    """The folder of a finished stage."""
    return model_folder / "stages" / _stored_stage_name(label, key)


def _stored_stage_name(label: str, key: str) -> str:
    return f"{label.replace(' ', '-')}-{key[:12]}"


def _is_locked_now(file: IO[bytes]) -> bool:
    """Take the lock on a file, where the mount has locks; False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _stored_stage_record(record: StageRequest | StageResult) -> str:
    return record.model_dump_json(indent=2) + "\n"
