"""A llama.cpp context: its KV cache, one reusable batch, and the logits of the last decode.

Logits are numpy views of llama.cpp's own buffer: nothing is copied, and a view is valid until the next decode.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

import llama_cpp
import numpy as np
import numpy.typing as npt

from eval.llama.model import LOG, GgufModel, unfit_gguf_model
from quantyard.hardware.machine import physical_cores
from quantyard.protocol.cache_types import DEFAULT_CACHE, cache_tensor_type

MAX_SEQUENCES: Final = 256  # LLAMA_MAX_SEQ, src/llama-cparams.h
PAD: Final = 256  # llama.cpp rounds a context up to this many cells
BATCH_TOKENS: Final = 512  # llama.cpp's default physical batch; larger ones are no faster on a CPU
_ALL: Final = -1
_MOST_STATES: Final = 64  # more sequences at once are no faster on a CPU
_STATES_BYTES: Final = 1 << 30  # of memory for all states; a state of a large hybrid model takes some 75 MB
_STATE_ALONE: Final = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: without the KV cells of a hybrid

Rows = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
FlashAttention = Literal["auto", "on", "off"]
_FLASH: Final = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO, "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


@dataclass(frozen=True)
class ContextSettings:
    """Settings of a context; `threads` 0: one per physical core."""

    n_ctx: int  # cells of the KV cache, shared by all sequences
    n_seq_max: int = 1
    threads: int = 0
    n_encoded: int = 0  # tokens of the longest text for the encoder, which reads a text in one batch
    flash_attention: FlashAttention = "auto"
    cache_types: tuple[str, str] = (DEFAULT_CACHE, DEFAULT_CACHE)  # of keys and of values
    batch_tokens: int = BATCH_TOKENS  # of one batch; llama.cpp reserves the logits of so many tokens


def ids_of_each_sequence(model: GgufModel) -> int:
    """How many of llama.cpp's sequences stand for one.

    With a sliding window llama.cpp writes over a cell that the only sequence it belongs to does not see any more, which
    another sequence may yet branch off from. What belongs to two sequences it keeps.
    """
    return 2 if model.has_window and not model.has_states else 1


def most_sequences(model: GgufModel) -> int:
    """Sequences that a context of this model can have at once; of a model with states, what memory allows."""
    if not model.has_states:
        return MAX_SEQUENCES // ids_of_each_sequence(model)
    with Context(model, ContextSettings(PAD)) as context:
        context.decode_one(np.array([0], np.int32))
        return int(min(_MOST_STATES, max(2, _STATES_BYTES // max(1, context.state_bytes()))))


class Context:
    """Decodes tokens of one model. Close it, or use it in a `with`."""

    def __init__(self, model: GgufModel, settings: ContextSettings) -> None:
        self.model = model
        self.n_ctx = -(-max(settings.n_ctx, settings.n_encoded) // PAD) * PAD
        self.n_seq_max = settings.n_seq_max
        self._ids_each = ids_of_each_sequence(model)
        self.threads = settings.threads or physical_cores()
        self.n_tokens_decoded = 0
        self._has_encoded = False
        self._batch_tokens = settings.batch_tokens
        self._handle = self._open(settings)
        self._memory = llama_cpp.llama_get_memory(self._handle)
        if not self._memory:
            self.close()
            raise unfit_gguf_model(model.path, "it has no KV cache or recurrent state")
        self._batch = _Batch(max(settings.batch_tokens, settings.n_encoded))

    def encode(self, tokens: Sequence[int] | Ints, n_seqs: int = 1) -> None:
        """Let the encoder read a text, which sequences 0 to `n_seqs` - 1 then answer; what was before is forgotten.

        Raises:
            StageFailure: `decode` (3): llama.cpp cannot encode it.
        """
        self.clear()
        ids = np.asarray(tokens, np.int32)
        places, every = np.arange(len(ids), dtype=np.int32), np.ones(len(ids), np.bool_)
        batch = self._batch.fill(ids, places, every, np.zeros_like(ids), np.full_like(ids, n_seqs))
        if code := llama_cpp.llama_encode(self._handle, batch):
            what = f"llama.cpp cannot encode {len(ids)} tokens (code {code})."
            raise LOG.failure(what, "decode", "Its last output says why. Try a smaller MAX_LENGTH.")
        self._has_encoded = True
        self.n_tokens_decoded += len(ids)

    def decode(
        self, tokens: Ints, positions: Ints, wanted: npt.NDArray[np.bool_], first_seq: Ints, n_seqs: Ints
    ) -> Rows:
        """Run tokens, each belonging to the sequences `first_seq[i]` to `first_seq[i] + n_seqs[i] - 1`.

        All arguments have the shape (n,), n at most the settings' `batch_tokens`.

        Returns:
            Logits of the wanted tokens in their order, shape (wanted, vocabulary); a view, valid until the next call.

        Raises:
            StageFailure: `decode` (3): llama.cpp cannot decode, for example because its KV cache is full.
            ValueError: an encoder-decoder has nothing to answer yet, upon which llama.cpp would abort.
        """
        if self.model.has_encoder and not self._has_encoded:
            raise ValueError("an encoder-decoder must encode a text before it decodes the answer")
        n = np.int32(self._ids_each)
        batch = self._batch.fill(tokens, positions, wanted, first_seq * n, n_seqs * n)
        code = llama_cpp.llama_decode(self._handle, batch)
        if code:
            what = f"llama.cpp cannot decode {len(tokens)} tokens (code {code}, {self.n_ctx} cells in the KV cache)."
            raise LOG.failure(what, "decode", "Its last output says why. Try a smaller MAX_LENGTH.")
        self.n_tokens_decoded += len(tokens)
        n_rows = int(np.count_nonzero(wanted))
        if not n_rows:
            return np.empty((0, self.model.n_vocab), np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._handle), (n_rows, self.model.n_vocab))

    def decode_one(self, tokens: Ints, start: int = 0, n_rows: int = 1, seq: int = 0) -> list[Rows]:
        """Run one sequence from position `start`; returns copies of its last `n_rows` rows, one array per batch."""
        rows = []
        for at in range(0, len(tokens), self._batch_tokens):
            part = tokens[at : at + self._batch_tokens]
            index = np.arange(at, at + len(part), dtype=np.int32)
            ones = np.ones(len(part), np.int32)
            view = self.decode(part, index + np.int32(start), index >= len(tokens) - n_rows, ones * np.int32(seq), ones)
            rows.append(view.copy())
        return rows

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int, end: int) -> None:
        """Let `target` share the first `end` tokens of `source`, -1 for all; takes no extra cells in a unified cache.

        Of a model with states it must be all.
        """
        n = self._ids_each
        for seq in range(target * n, target * n + n):
            llama_cpp.llama_memory_seq_cp(self._memory, source * n, seq, 0, end)

    def remove(self, seq: int, start: int = 0) -> None:
        """Forget a sequence from position `start` on."""
        for one in range(seq * self._ids_each, (seq + 1) * self._ids_each):
            llama_cpp.llama_memory_seq_rm(self._memory, one, start, _ALL)

    def state_bytes(self) -> int:
        """Memory for the state of sequence 0, which has been decoded."""
        return int(llama_cpp.llama_state_seq_get_size_ext(self._handle, 0, _STATE_ALONE))

    def close(self) -> None:
        """Free the memory."""
        if self._handle:
            llama_cpp.llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self, settings: ContextSettings) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = params.n_ubatch = max(settings.batch_tokens, settings.n_encoded)
        params.n_seq_max = settings.n_seq_max * self._ids_each
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = True  # so that a token may belong to several sequences, and copies take no cells
        params.swa_full = True  # keep the whole sliding-window cache, so that a sequence may be longer than the window
        params.no_perf = True
        params.type_k, params.type_v = (cache_tensor_type(name).id for name in settings.cache_types)
        params.flash_attn_type = _FLASH[settings.flash_attention]
        handle = llama_cpp.llama_init_from_model(self.model.handle, params)
        if not handle:
            what = f"llama.cpp cannot open a context of {self.n_ctx} tokens for {self.model.path.name}."
            raise LOG.failure(what, "context", "Memory may be short: try a smaller MAX_LENGTH.")
        return handle


class _Batch:
    """A `llama_batch` over numpy arrays.

    The sequence ids of a token are always a range, so every token points into one shared array 0, 1, 2, …
    """

    def __init__(self, size: int) -> None:
        self._tokens, self._positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self._n_seqs, self._wanted = np.zeros(size, np.int32), np.zeros(size, np.int8)
        self._ids = np.arange(MAX_SEQUENCES, dtype=np.int32)
        self._seqs = np.zeros(size, np.uintp)  # pointers into _ids
        self._struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=_llama_batch_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_llama_batch_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_llama_batch_pointer(self._n_seqs, ctypes.c_int32),
            seq_id=_llama_batch_pointer(self._seqs, ctypes.POINTER(ctypes.c_int32)),
            logits=_llama_batch_pointer(self._wanted, ctypes.c_int8),
        )

    def fill(self, tokens: Ints, positions: Ints, wanted: npt.NDArray[np.bool_], first: Ints, n_seqs: Ints) -> Any:
        """Fill the batch with these tokens and return it."""
        n = len(tokens)
        self._tokens[:n], self._positions[:n], self._wanted[:n] = tokens, positions, wanted
        self._n_seqs[:n] = n_seqs
        self._seqs[:n] = self._ids.ctypes.data + first.astype(np.uintp) * self._ids.itemsize
        self._struct.n_tokens = n
        return self._struct


def _llama_batch_pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
