"""Adds chunks of a text to an importance matrix, computed by llama-imatrix or by llama-cpp-python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure


@dataclass(frozen=True)
class ImatrixLeg:
    """The chunks from `start` to before `end`, added to the matrix `before`; what follows goes to `out`."""

    start: int
    end: int
    before: Path | None
    out: Path


class MatrixReader(Protocol):
    """Reads a text with a model."""

    def leg_argv(self, text: Path, leg: ImatrixLeg) -> tuple[str, ...]:
        """What is run for a leg, for the manifest."""

    def read(self, text: Path, leg: ImatrixLeg) -> float:
        """Write the matrix of a leg; returns the perplexity of its chunks, which may be no number.

        Raises:
            StageFailure: 3 if the model gives no usable statistics, 5 if disk or memory ran out.
        """


def imatrix_not_finite(what: str, detail: str = "") -> StageFailure:
    """llama.cpp stops at the first value that is not a number, and so do we: a matrix with one is worse than none."""
    message = f"The model's activations overflow: {what}."
    hint = "Convert with a wider range, OUTTYPE=bf16 or f32, or build without a matrix: IMATRIX=none"
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "calibrate-nan", message, hint, detail)
