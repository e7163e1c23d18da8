"""Adds chunks of a text to an importance matrix, computed by llama-imatrix or by llama-cpp-python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure


@dataclass(frozen=True)
class ImatrixLeg:
    """Adds chunks `start` to `end` (exclusive) to the matrix `before` (None: an empty one) and writes it to `out`."""

    start: int
    end: int
    before: Path | None
    out: Path


@dataclass(frozen=True)
class LegLoss:
    """The mean negative loglikelihood of a leg's first `chunks`, nats; NaN where the model's outputs are."""

    chunks: int = 0  # 0: the loss is not known
    nats: float = 0.0


class MatrixReader(Protocol):
    """Runs a model over a text and collects the importance matrix."""

    def leg_argv(self, text: Path, leg: ImatrixLeg) -> tuple[str, ...]:
        """What is run for a leg, for the manifest."""

    def read(self, text: Path, leg: ImatrixLeg) -> LegLoss:
        """Write the matrix of a leg; returns the loss of its chunks, or of the first ones where output is missing.

        Raises:
            StageFailure: 3 if the model gives no usable statistics, 5 if disk or memory ran out.
        """


def imatrix_not_finite(what: str, detail: str = "") -> StageFailure:
    """The failure for NaN or infinite activations. llama-imatrix stops at the first, since it spoils the matrix."""
    message = f"The model's activations overflow: {what}."
    hint = "Convert with a wider range, OUTTYPE=bf16 or f32, or build without a matrix: IMATRIX=none"
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "calibrate-nan", message, hint, detail)
