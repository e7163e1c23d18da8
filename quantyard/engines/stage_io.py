"""Reads the progress lines of a stage and, at its end, its result. Neither is trusted, since the stage may have
processed hostile files.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from quantyard.engines import OnProgress
from quantyard.errors import EngineError, ResultRefused
from quantyard.files.safe_files import SafeFolder, UnsafeFile
from quantyard.plan.steps import StageSpec
from quantyard.protocol.aborts import TailWithReason, crash_words, without_backtrace
from quantyard.protocol.base import ExitCode, Progress, StageError, StageResult
from quantyard.protocol.stage_result import MAX_RESULT_BYTES, RESULT, parse_stage_result

_MAX_PROGRESS_CHARS: Final = 1000
_MOST_PER_S: Final = 50  # progress lines; a stage prints at most ten
_TAIL_LINES: Final = 15
_FULL_BELOW_BYTES: Final = 64 * 1024
_ENDED: Final = frozenset(int(code) for code in ExitCode if code is not ExitCode.DONE)


class StageListener:
    """Takes the output lines of one stage: reports its progress, and keeps the last of the other lines."""

    def __init__(self, stage: str, on_progress: OnProgress) -> None:
        self._stage, self._on_progress = stage, on_progress
        self._tail = TailWithReason(_TAIL_LINES)
        self._second, self._heard = 0, 0

    @property
    def tail(self) -> str:
        """The last lines that are not progress, after the line with the reason of an abort, if there was one."""
        return str(self._tail)

    def on_stdout(self, line: str) -> None:
        """One line of stdout: progress, or text for people."""
        if line.startswith("{") and len(line) <= _MAX_PROGRESS_CHARS:
            if self._is_flood():
                return
            if (progress := _stage_progress(line)) is not None and progress.stage == self._stage:
                self._on_progress(progress)
                return
        self.on_stderr(line)

    def on_stderr(self, line: str) -> None:
        """One line for people."""
        self._tail.append(line)

    def _is_flood(self) -> bool:
        """Whether this second has had more progress lines than allowed."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._heard = second, 0
        self._heard += 1
        return self._heard > _MOST_PER_S


def _stage_progress(line: str) -> Progress | None:
    try:
        return Progress.model_validate_json(line, strict=True)
    except ValidationError:
        return None


def read_engine_result(spec: StageSpec, out_dir: Path, exit_code: int, tail: str) -> StageResult:
    """The result of a stage that has ended, or one made from its exit code.

    An abort or a crash is put down to llama.cpp's code and this model: exit code 3.

    Raises:
        ResultRefused: the result is invalid, that of another stage, or names another exit code.
        EngineError: the stage was killed.
    """
    if words := crash_words(exit_code, tail):
        return _crashed_stage_result(spec, words, tail)
    if exit_code != ExitCode.DONE and exit_code not in _ENDED:
        raise _killed_stage_error(spec.label, exit_code, tail)
    try:
        with SafeFolder.opened(out_dir) as out:
            is_there = RESULT in out.names()
            text = out.read(RESULT, MAX_RESULT_BYTES) if is_there else b""
        result = parse_stage_result(text) if is_there else _result_of_silent_stage(spec, out_dir, exit_code, tail)
    except UnsafeFile as error:
        raise ResultRefused(spec.label, str(error), tail) from error
    except ValueError as error:
        raise ResultRefused(spec.label, f"its {RESULT}: {error}", tail) from error
    if result.stage != spec.row.name:
        raise ResultRefused(spec.label, f"its {RESULT} is that of the stage {result.stage!r}", tail)
    if int(result.exit_code) != exit_code:
        problem = f"its {RESULT} says exit code {int(result.exit_code)}, and its process ended with {exit_code}"
        raise ResultRefused(spec.label, problem, tail)
    return result.model_copy(update={"ran_on": None}) if result.ran_on else result


def _result_of_silent_stage(spec: StageSpec, out_dir: Path, exit_code: int, tail: str) -> StageResult:
    """A result made from the exit code, for a stage that wrote none; on a full disk it cannot."""
    if exit_code == ExitCode.DONE:
        raise ValueError("it is missing, although the process succeeded")
    said = "its last output may say why" if tail else "it printed nothing"
    error = StageError(kind="no-result", message=f"It ended without a result; {said}.", detail=tail)
    if exit_code == ExitCode.RESOURCES:
        error = _stage_out_of_resources(out_dir, tail)
    return StageResult(stage=spec.row.name, exit_code=ExitCode(exit_code), error=error)


def _stage_out_of_resources(out_dir: Path, tail: str) -> StageError:
    hint = "Free some space, then type the same command again."
    disk = os.statvfs(out_dir)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < _FULL_BELOW_BYTES or "No space left" in tail:
        message = f"The disk is full: {free_bytes:,} bytes are left where artifacts are kept."
        return StageError(kind="out-of-disk", message=message, hint=hint)
    message = "Disk or memory ran out; the stage could not say which."
    return StageError(kind="out-of-resources", message=message, hint=hint, detail=tail)


def engine_timeout_error(spec: StageSpec) -> EngineError:
    """The error for a stage that was stopped at its time limit."""
    message = f"{spec.label} took longer than its limit of {spec.row.timeout_s / 3600:.1f} hours."
    return EngineError(message, "Try a smaller model or a faster machine.")


def _crashed_stage_result(spec: StageSpec, words: str, tail: str) -> StageResult:
    """The result of a stage whose process ended itself by a signal."""
    message = f"llama.cpp {words}."
    hint = "Choose another model, or another version of llama.cpp: LLAMA_CPP_TAG=full-bNNNN"
    error = StageError(kind="crashed", message=message, hint=hint, detail=without_backtrace(tail))
    return StageResult(stage=spec.row.name, exit_code=ExitCode.UNSUPPORTED_MODEL, error=error)


def _killed_stage_error(label: str, exit_code: int, tail: str) -> EngineError:
    if exit_code in (-signal.SIGILL, 128 + signal.SIGILL):
        message = f"{label} used an instruction that this CPU does not have (SIGILL)."
        return EngineError(message, "llama.cpp was built for another CPU. Check this machine: make doctor", tail)
    is_signal = exit_code < 0 or exit_code > 128
    how = "was killed from outside" if is_signal else "ended with an exit code that stages do not use"
    message = f"{label} {how} (exit code {exit_code})."
    return EngineError(message, "Type the same command again; finished stages are kept.", tail)
