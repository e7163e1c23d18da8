"""Shows uploads in the reporters: each file is a step, and its bytes are the step's progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from quantyard.execution.reporter import StepReporter
from quantyard.protocol.base import ExitCode, FileEntry, Progress, StageResult

_STAGE = "publish"
_SMALL_BYTES = 2**20  # smaller files, such as plots and texts, upload too quickly to show


@dataclass
class UploadProgress:
    """The callback of uploads: a file's name, its bytes sent so far and its size."""

    reporter: StepReporter
    n_files: int
    _began: dict[str, float] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    def __call__(self, path: str, done_bytes: int, total_bytes: int) -> None:
        """Report the progress of this file."""
        if path in self._ended or total_bytes < _SMALL_BYTES:
            return
        if path not in self._began:
            self._began[path] = time.monotonic()
            self.reporter.begin(path, len(self._began), max(self.n_files, len(self._began)))
        self.reporter.progress(path, Progress(stage=_STAGE, done=done_bytes, total=total_bytes, unit="bytes"))
        if done_bytes >= total_bytes:
            self._end(path, total_bytes)

    def _end(self, path: str, total_bytes: int) -> None:
        self._ended.add(path)
        sent = (FileEntry(path=path, size_bytes=total_bytes),)
        took_s = time.monotonic() - self._began[path]
        self.reporter.end(
            path, StageResult(stage=_STAGE, exit_code=ExitCode.DONE, outputs=sent, duration_s=took_s)
        )
