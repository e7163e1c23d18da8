"""What an engine reads of a stage: its progress lines, and in the end its result."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from pipeline.contract import ExitCode, Progress, StageError, StageResult
from pipeline.engines import OnProgress
from pipeline.errors import EngineError


def report_line(line: str, on_progress: OnProgress) -> bool:
    """Pass one line of stdout on if it is a progress line; False if it is something else."""
    try:
        progress = Progress.model_validate_json(line)
    except ValidationError:
        return False
    on_progress(progress)
    return True


def read_result(label: str, out_dir: Path, exit_code: int, stderr_tail: str) -> StageResult:
    """The result a stage left, or one made from how it ended.

    Raises:
        EngineError: it was killed from outside and left nothing.
    """
    result = _left_behind(out_dir)
    if result is not None and int(result.exit_code) == exit_code:
        return result
    if exit_code in (int(code) for code in ExitCode if code is not ExitCode.DONE):
        error = StageError(kind="no-result", message="It left no result.", detail=stderr_tail)
        return StageResult(stage=label.split(maxsplit=1)[0], exit_code=ExitCode(exit_code), error=error)
    message = f"{label} was killed from outside (exit code {exit_code})."
    raise EngineError(message, "Type the same command again; finished stages are kept.", stderr_tail)


def _left_behind(out_dir: Path) -> StageResult | None:
    try:
        return StageResult.model_validate_json((out_dir / "result.json").read_bytes())
    except (OSError, ValidationError):
        return None
