"""Runs a stage as a process: reads the request, calls the stage, writes the result, chooses the exit code.

Nothing else in a stage reads the environment or exits. A stage raises `StageFailure` on purpose; a full disk and
exhausted memory are recognized here for all stages; any other error is our bug (70).
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import JsonValue, ValidationError

from quantyard.formats.finite_json import BeyondMeasureError
from quantyard.formatting.printable import printable_url
from quantyard.hardware.machine import cpu_name, gpu_name, machine_memory_bytes, physical_cores
from quantyard.protocol.base import (
    ExitCode,
    FileEntry,
    NodeFacts,
    Progress,
    StageError,
    StageRequest,
    StageResult,
)

_HASH_BLOCK_BYTES = 4 * 1024 * 1024
_NOT_FINITE = "finite_number"  # pydantic's error type
_PROGRESS_EVERY_S = 0.1
R = TypeVar("R", bound=StageRequest)


class StageFailure(Exception):
    """A failure that the user can act on: exit code, kind, fact with its value, and what to do next."""

    def __init__(self, exit_code: ExitCode, kind: str, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.error = StageError(kind=kind, message=message, hint=hint, detail=detail)


@dataclass
class Stage:
    """One running stage: its inputs, its outputs, and its progress and log lines."""

    name: str
    in_dir: Path
    out_dir: Path
    environment: Mapping[str, str]  # the only access of a stage to the environment
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)  # from the first line of stdin
    known_sha256: dict[str, str] = field(default_factory=dict)  # outputs whose hash the stage already knows
    _last_progress: float = 0.0

    @property
    def files_dir(self) -> Path:
        """The folder for the stage's outputs."""
        return self.out_dir / "files"

    @property
    def scratch_dir(self) -> Path:
        """A temporary folder, removed when the stage ends."""
        folder = self.out_dir / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def input_files(self, name: str) -> tuple[FileEntry, ...]:
        """The files of an input with their hashes from the store; () if the store did not pass them on."""
        path = self.in_dir / "inputs.json"
        known = json.loads(path.read_bytes()) if path.is_file() else {}
        return tuple(FileEntry.model_validate(entry) for entry in known.get(name, ()))

    def secret(self, name: str) -> str | None:
        """A secret from the orchestrator; None if it did not pass one."""
        return self.secrets.get(name) or None

    def progress(self, done: int, total: int | None, unit: str, what: str = "", *, begins: bool = False) -> None:
        """Print one progress line: at most ten per second, and always the last.

        Args:
            what: the name of what runs inside the stage.
            begins: whether it begins, which may take long and is always printed.
        """
        now = time.monotonic()
        if done != total and not begins and now - self._last_progress < _PROGRESS_EVERY_S:
            return
        self._last_progress = now
        line = Progress(stage=self.name, done=done, total=total, unit=unit, what=what)  # type: ignore[arg-type]
        print(line.model_dump_json(), flush=True)

    def begin(self, what: str) -> None:
        """Name what runs now, where nothing is counted."""
        self.progress(0, None, "checks", what, begins=True)

    def log(self, message: str) -> None:
        """Print one log line."""
        print(printable_url(f"[{self.name}] {message}"), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class StageOutcome:
    """What a stage returns, in addition to the files that it wrote."""

    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    argv: tuple[tuple[str, ...], ...] = ()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    with path.open("rb") as stream:
        return open_file_sha256(stream.fileno())


def open_file_sha256(descriptor: int) -> str:
    """SHA-256 (hex) of an open file from its beginning, read in blocks."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_HASH_BLOCK_BYTES))
    os.lseek(descriptor, 0, os.SEEK_SET)
    while n := os.readv(descriptor, [block]):
        digest.update(block[:n])
    return digest.hexdigest()


def run_stage(request_type: type[R], work: Callable[[Stage, R], StageOutcome]) -> NoReturn:
    """Run one stage as this process, and exit with its code."""
    args = _parse_stage_argv()
    secrets = _read_stage_secrets() if args.secrets_on_stdin else {}
    # Libraries read proxies from the environment. A variable set here, unlike one set at the start of the process, does
    # not show in /proc/<pid>/environ or in the description of the container.
    os.environ.update((name, url) for name, url in secrets.items() if name.upper().endswith("_PROXY"))
    if args.die_with_stdin:
        threading.Thread(target=_end_stage_with_stdin, daemon=True).start()
    name = str(request_type.model_fields["stage"].default)
    stage = Stage(name, args.in_dir, args.out_dir, dict(os.environ), secrets)
    started = time.monotonic()
    try:
        request = request_type.model_validate_json((stage.in_dir / "request.json").read_bytes())
        stage.files_dir.mkdir(parents=True, exist_ok=True)
        outcome = work(stage, request)
        result = StageResult(
            stage=stage.name, exit_code=ExitCode.DONE, outputs=_stage_outputs(stage), facts=dict(outcome.facts),
            tools=dict(outcome.tools), argv=outcome.argv, duration_s=time.monotonic() - started, cpu=cpu_name(),
            node=stage_node_facts(),
        )
    except BaseException as error:
        result = _failed_stage_result(stage, error, time.monotonic() - started)
    shutil.rmtree(stage.out_dir / "scratch", ignore_errors=True)
    sys.exit(_write_stage_result(stage, result))


def _parse_stage_argv() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One stage of Quantyard; the orchestrator starts it.")
    parser.add_argument("--in", dest="in_dir", type=Path, default=Path("/in"))
    parser.add_argument("--out", dest="out_dir", type=Path, default=Path("/out"))
    parser.add_argument("--secrets-on-stdin", action="store_true", help="a JSON object is the first line of stdin")
    parser.add_argument("--die-with-stdin", action="store_true", help="end as soon as stdin closes")
    return parser.parse_args()


def _read_stage_secrets() -> dict[str, str]:
    """Read exactly the first line of stdin; `_end_stage_with_stdin` reads the rest."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return {str(name): str(value) for name, value in json.loads(line or b"{}").items()}


def _end_stage_with_stdin() -> None:
    """Kill this process and its tools when stdin closes, which happens however the orchestrator ends."""
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


def _stage_outputs(stage: Stage) -> tuple[FileEntry, ...]:
    """The output files, with the hashes that are known already; the store hashes and syncs them."""
    files = sorted(p for p in stage.files_dir.rglob("*") if p.is_file())
    names = [path.relative_to(stage.files_dir).as_posix() for path in files]
    return tuple(
        FileEntry(path=name, size_bytes=path.stat().st_size, sha256=stage.known_sha256.get(name))
        for name, path in zip(names, files, strict=True)
    )


def _failed_stage_result(stage: Stage, error: BaseException, duration_s: float) -> StageResult:
    if isinstance(error, StageFailure):
        code, what = error.exit_code, error.error
    elif isinstance(error, ValidationError) and (field := _request_field_not_finite(error)):
        message = f"A value computed from this model is beyond any measure: {field}."
        hint = "Its weights may be random or broken: try another checkpoint."
        code, what = ExitCode.UNSUPPORTED_MODEL, StageError(kind="not-finite", message=message, hint=hint)
    elif isinstance(error, ValidationError | json.JSONDecodeError):
        code, what = ExitCode.BAD_REQUEST, StageError(kind="bad-request", message=f"The request is not valid: {error}")
    elif is_stage_out_of_space(error):
        code, what = ExitCode.RESOURCES, stage_out_of_space(stage)
    elif isinstance(error, MemoryError):
        hint = "Give it more memory: MEMORY=16GiB, or close other programs."
        code, what = ExitCode.RESOURCES, StageError(kind="out-of-memory", message="Memory ran out.", hint=hint)
    else:
        print(printable_url("".join(traceback.format_exception(error))), file=sys.stderr)
        code, what = ExitCode.BUG, StageError(kind="bug", message=f"{type(error).__name__}: {error}")
    return StageResult(
        stage=stage.name,
        exit_code=code,
        duration_s=duration_s,
        cpu=cpu_name(),
        node=stage_node_facts(),
        error=_stage_error_without_passwords(what),
    )


def stage_node_facts() -> NodeFacts:
    """The machine that this process runs on."""
    return NodeFacts(
        cpu=cpu_name(), physical_cores=physical_cores(), memory_bytes=machine_memory_bytes(), gpu=gpu_name()
    )


def _stage_error_without_passwords(error: StageError) -> StageError:
    words = {name: printable_url(getattr(error, name)) for name in ("message", "hint", "detail")}
    return error.model_copy(update=words)


def _request_field_not_finite(error: ValidationError) -> str:
    """The field with NaN, infinity or a number beyond any measure, and its value; "" for any other error."""
    for one in error.errors():
        if one["type"] == _NOT_FINITE:
            place = [str(part) for part in one["loc"] if part not in ("facts", "float")]  # a union's member is a part
            return f"{'.'.join(place)} is {one['input']}"
        if isinstance(said := one.get("ctx", {}).get("error"), BeyondMeasureError):
            return str(said).partition(",")[0]
    return ""


def is_stage_out_of_space(error: BaseException) -> bool:
    """Whether this error or one of its causes is a full disk."""
    return any(
        isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        for cause in stage_error_causes(error)
    )


def stage_error_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then its causes down to the first one."""
    seen: set[int] = set()  # a library may have chained its errors in a cycle
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def stage_out_of_space(stage: Stage) -> StageError:
    """The error for a full disk, with the free space."""
    free = os.statvfs(stage.out_dir)
    message = f"The disk is full: {free.f_bavail * free.f_frsize:,} bytes are left where artifacts are kept."
    return StageError(kind="out-of-disk", message=message, hint="Free some space, then type the same command again.")


def _write_stage_result(stage: Stage, result: StageResult) -> ExitCode:
    """Write the result atomically; returns the exit code. On a full disk the exit code is the only result."""
    partial = stage.out_dir / ".result.json.partial"
    try:
        partial.write_text(result.model_dump_json(indent=2) + "\n")
        partial.replace(stage.out_dir / "result.json")
    except OSError as error:
        stage.log(f"result.json cannot be written: {error.strerror}")
        with suppress(OSError):
            partial.unlink()
        return ExitCode.RESOURCES if is_stage_out_of_space(error) else ExitCode.BUG
    return result.exit_code
