"""Several models that read the same passages side by side, each compared with the first.

Contexts are kept from one reading to the next: to open one takes a tenth of a second for a small model, as long as it
reads a hundred tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import numpy as np

from eval.analysis.domain_passages import Passage, passage_batches
from eval.analysis.kl_divergence import DivergenceRows
from eval.llama.context import BATCH_TOKENS, Context, ContextSettings
from eval.llama.model import GgufModel

_MAX_ROWS: Final = 256  # rows of logits per model at a time


class PassageReaders:
    """A context of each model, as large as the longest passage so far needs. Use it in a `with`."""

    def __init__(self, models: Sequence[GgufModel], threads: int) -> None:
        self.models = models
        self._threads = threads
        self._open = ExitStack()
        self._contexts: list[Context] = []
        self._room = (0, 0)  # of a passage, and of a text for the encoder

    def read(self, passages: Sequence[Passage]) -> DivergenceRows:
        """Let every model read the passages, and compare them with the baseline, the first model.

        Raises:
            StageFailure: llama.cpp cannot open a context or decode, or logits are unusable.
        """
        rows = DivergenceRows(self.models[0].n_vocab, len(self.models) - 1)
        self._make_room(max(len(p.tokens) for p in passages), max(len(p.encoded) for p in passages))
        for passage in passages:
            _read_passage(self._contexts, passage, rows)
        return rows

    def _make_room(self, n_ctx: int, n_encoded: int) -> None:
        if n_ctx <= self._room[0] and n_encoded <= self._room[1]:
            return
        self._open.close()
        self._room = (max(n_ctx, self._room[0]), max(n_encoded, self._room[1]))
        settings = ContextSettings(self._room[0], threads=self._threads, n_encoded=self._room[1])
        self._contexts = [self._open.enter_context(Context(model, settings)) for model in self.models]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()


def _read_passage(contexts: Sequence[Context], passage: Passage, rows: DivergenceRows) -> None:
    for context in contexts:
        context.clear()
        if passage.encoded:
            context.encode(passage.encoded)
    for batch in passage_batches(passage, BATCH_TOKENS, _MAX_ROWS):
        positions = np.arange(batch.start, batch.end, dtype=np.int32)
        sequence, one = np.zeros_like(positions), np.ones_like(positions)
        baseline, *others = [
            context.decode(passage.tokens[batch.start : batch.end], positions, batch.wanted, sequence, one)
            for context in contexts
        ]
        if batch.wanted.any():
            rows.add(baseline, others, passage.tokens[batch.start + 1 : batch.end + 1][batch.wanted])
