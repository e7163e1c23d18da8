"""Our side of OpenVINO: its process, what is asked of it, and why it refuses a file.

The process is that of `.venv-openvino`, whose interpreter is named by the variable OPENVINO_PYTHON.
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from quantyard.protocol.base import ExitCode
from quantyard.protocol.openvino import (
    OpenVinoAnswer,
    OpenVinoAsk,
    OpenVinoFailed,
    OpenVinoLoaded,
    OpenVinoRefusal,
)
from quantyard.protocol.runner import StageFailure

PYTHON_VARIABLE: Final = "OPENVINO_PYTHON"
_MODULE: Final = "eval.runtimes.openvino_worker"
_TAIL_LINES: Final = 10
_STOP_S: Final = 10.0
_DETAIL_CHARACTERS: Final = 1000
Rows = npt.NDArray[np.float32]
# Words of OpenVINO GenAI's reader (src/cpp/src/gguf_utils) → the reason.
_WORDS: Final[tuple[tuple[str, OpenVinoRefusal], ...]] = (
    ("Unsupported model architecture", "ARCHITECTURE"),
    ("gguf_tensor_to_f16 failed", "TENSOR_TYPE"),
    ("Unsupported quantization type", "TENSOR_TYPE"),
    ("incompatible last dim shape", "TENSOR_TYPE"),
)


class OpenVinoRefused(Exception):
    """OpenVINO cannot run this file."""

    def __init__(self, reason: OpenVinoRefusal, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail.strip()[-_DETAIL_CHARACTERS:]


def openvino_refused(words: str) -> OpenVinoRefused:
    """The refusal that these words of OpenVINO mean."""
    reason: OpenVinoRefusal = next((reason for part, reason in _WORDS if part in words), "NOT_LOADED")
    return OpenVinoRefused(reason, words)


def refuse_openvino_rows(rows: Rows, n_vocab: int) -> None:
    """Refuse rows of logits that cannot be compared.

    Raises:
        OpenVinoRefused: they are of another vocabulary, or a logit is NaN or +infinity.
    """
    if rows.shape[1] != n_vocab:
        raise OpenVinoRefused("VOCABULARY", f"{rows.shape[1]} in place of {n_vocab}")
    if np.isnan(rows).any() or np.isposinf(rows).any():
        raise OpenVinoRefused("NOT_FINITE")


class OpenVinoModel:
    """One GGUF in OpenVINO. Use it in a `with`; `loaded` says what became of the file."""

    def __init__(self, argv: Sequence[str], model: Path, folder: Path, threads: int) -> None:
        """Start the process, and wait until it has loaded the file.

        Args:
            argv: starts the worker; see `openvino_worker_argv`.
            folder: an empty one, for the model that OpenVINO makes and for rows of logits.

        Raises:
            OpenVinoRefused: it cannot load the file, or its process ended.
        """
        link = folder / "model.gguf"
        link.symlink_to(model.resolve())
        self._rows_file = folder / "rows.npy"
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process = subprocess.Popen(
            [*argv, str(link), str(threads)], text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self._reader = Thread(target=self._keep_tail, daemon=True)
        self._reader.start()
        try:
            self.loaded = self._read_loaded()
        except BaseException:
            self.close()
            raise

    def generate(self, tokens: Sequence[int], n: int) -> OpenVinoAnswer:
        """The `n` likeliest tokens after these; before the first chunk is read."""
        return self._ask(OpenVinoAsk(tokens=tuple(tokens), generate=n))

    def read(self, tokens: Sequence[int], first: int) -> tuple[Rows, dict[str, str]]:
        """The rows of logits from position `first` on, but that of the last token, and how they were computed.

        Raises:
            OpenVinoRefused: its process ended.
        """
        answer = self._ask(OpenVinoAsk(tokens=tuple(tokens), first=first, rows_file=str(self._rows_file)))
        rows: Rows = np.load(self._rows_file).astype(np.float32, copy=False)
        return rows, answer.computes

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with self._process:  # closes the pipes
            try:
                self._process.stdin.close()
                self._process.wait(timeout=_STOP_S)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read_loaded(self) -> OpenVinoLoaded:
        line = self._read_line()
        try:
            return OpenVinoLoaded.model_validate_json(line)
        except ValidationError:
            raise openvino_refused(OpenVinoFailed.model_validate_json(line).failure) from None

    def _ask(self, ask: OpenVinoAsk) -> OpenVinoAnswer:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(ask.model_dump_json() + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._crashed() from error
        return OpenVinoAnswer.model_validate_json(self._read_line())

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._crashed()
        return line

    def _crashed(self) -> OpenVinoRefused:
        code = self._process.wait(timeout=_STOP_S)
        self._reader.join(_STOP_S)
        return OpenVinoRefused("CRASHED", "\n".join([*self._tail, f"exit code {code}"]))

    def _keep_tail(self) -> None:
        assert self._process.stderr is not None
        self._tail.extend(line.rstrip() for line in self._process.stderr)


def openvino_worker_argv(python: str | None) -> list[str]:
    """What starts the worker with this interpreter.

    Raises:
        StageFailure: `openvino-environment` (3): there is none.
    """
    if not python or not os.access(python, os.X_OK):
        message = f"OpenVINO's environment is missing: {PYTHON_VARIABLE} is {python or 'not set'}."
        hint = "Type: scripts/setup-venv.sh openvino .venv-openvino"
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "openvino-environment", message, hint)
    return [python, "-m", _MODULE]
