"""Log-softmax of rows of logits, in blocks that fit in the CPU cache."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_BLOCK_FLOATS: Final = 1 << 19  # 2 MiB of scratch, which fits in the CPU cache

NOT_FINITE: Final = "The model's logits are not finite (NaN or infinity), so they give no probabilities."

Rows = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class LogSoftmax:
    """Computes normalizers of rows over one vocabulary; reuses its scratch memory."""

    def __init__(self, n_vocab: int) -> None:
        self._block = max(1, _BLOCK_FLOATS // n_vocab)
        self._scratch = np.empty((self._block, n_vocab), np.float32)

    def normalizers(self, rows: Rows) -> Doubles:
        """Log Σ exp of each row, shape (rows,), in nats. See `with_likeliest`."""
        return self.with_likeliest(rows)[0]

    def with_likeliest(self, rows: Rows) -> tuple[Doubles, npt.NDArray[np.intp]]:
        """Log Σ exp of each row in nats, and its most likely token (the smallest id on ties); both of shape (rows,).

        Raises:
            StageFailure: `nan-logits` (3): a logit is NaN or +infinity.
        """
        out, likeliest = np.empty(len(rows), np.float64), np.empty(len(rows), np.intp)
        for start in range(0, len(rows), self._block):
            part = rows[start : start + self._block]
            scratch = self._scratch[: len(part)]
            first = part.argmax(axis=1)
            largest = part[np.arange(len(part)), first]
            np.subtract(part, largest[:, None], out=scratch)
            np.exp(scratch, out=scratch)
            out[start : start + len(part)] = np.log(scratch.sum(axis=1).astype(np.float64)) + largest
            likeliest[start : start + len(part)] = first
        if not np.isfinite(out).all():
            raise unusable_logits(NOT_FINITE)
        return out, likeliest

    def of_tokens(self, rows: Rows, row_of: npt.NDArray[np.intp], tokens: npt.NDArray[np.int32]) -> Doubles:
        """Log-probability of `tokens[i]` in `rows[row_of[i]]`, shape (tokens,), in nats."""
        return np.asarray(rows[row_of, tokens] - self.normalizers(rows)[row_of], np.float64)


def unusable_logits(message: str) -> StageFailure:
    """The failure for logits that do not form a distribution."""
    hint = "Values overflow in this precision: try another quant or OUTTYPE=f32, and run make build to verify the file."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "nan-logits", message, hint)
