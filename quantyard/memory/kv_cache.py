"""The memory that llama.cpp allocates for a context, in bytes, exactly.

From `llama_context` (padding), `llama_kv_cache`, `llama_kv_cache_iswa` (windows) and `llama_memory_recurrent` in
llama.cpp's src/. `tests/docker/test_choose_memory.py` compares it with llama-server's log.
"""

from __future__ import annotations

from typing import Final

from quantyard.memory.layers import ModelLayers
from quantyard.protocol.cache_types import DEFAULT_CACHE, cache_tensor_type, cache_type_pair
from quantyard.records import dataclass

CELL_STEP: Final = 256  # a context is rounded up to a multiple of this
UBATCH_TOKENS: Final = 512  # llama.cpp's default physical batch, also used for measuring
_ALIGNMENT_BYTES: Final = 32
_STATE_BYTES: Final = 4  # recurrent states are f32 with every cache type
_MASK_BYTES: Final = 2  # flash attention's mask is f16



@dataclass(frozen=True)
class ContextUse:
    """The parameters of a context.

    Attributes:
        tokens: `--ctx-size`, over all sequences.
        sequences: `--parallel`, requests answered at once.
        unified: one cache shared by all sequences (`--kv-unified`), or one for each, as our server runs.
        whole_windows: keep the whole cache of a sliding window (`--swa-full`), as measuring does.
    """

    tokens: int
    sequences: int = 1
    unified: bool = True
    whole_windows: bool = False

    @property
    def streams(self) -> int:
        """The number of caches."""
        return 1 if self.unified else self.sequences

    @property
    def cells(self) -> int:
        """The tokens in each cache."""
        return _padded_cells(_padded_cells(self.tokens, CELL_STEP) // self.streams, CELL_STEP)

    @property
    def batch(self) -> int:
        """The tokens of a batch."""
        return min(self.tokens, UBATCH_TOKENS)

    def window_cells(self, window: int) -> int:
        """The tokens in the cache of a layer with a sliding window."""
        if self.whole_windows:
            return self.cells
        return _padded_cells(min(self.cells, window * (self.sequences if self.unified else 1) + self.batch), CELL_STEP)


def context_cache_bytes(model: ModelLayers, use: ContextUse, cache_type: str = DEFAULT_CACHE) -> int:
    """Bytes of the KV cache and of recurrent states: "KV buffer size" and "RS buffer size" in llama-server's log."""
    return kv_bytes(model, use, cache_type) + recurrent_state_bytes(model, use)


def kv_bytes(model: ModelLayers, use: ContextUse, cache_type: str = DEFAULT_CACHE) -> int:
    """Bytes of the KV cache alone.

    Args:
        cache_type: such as `q8_0`, or `q8_0/f16` for keys and values apart.
    """
    k, v = (cache_tensor_type(name) for name in cache_type_pair(cache_type))
    total = 0
    for layer in model.layers:
        cells = use.streams * (use.window_cells(model.window) if layer.windowed else use.cells)
        rows = ((layer.k, k), (layer.v, v))
        total += sum(cells * row // kind.block_size * kind.type_size_bytes for row, kind in rows)
    return total


def recurrent_state_bytes(model: ModelLayers, use: ContextUse) -> int:
    """Bytes of the recurrent states: the same at every context."""
    recurrent = sum(layer.recurrent for layer in model.layers)
    rows = max(1, use.sequences)
    each = sum(_padded_cells(rows * n * _STATE_BYTES, _ALIGNMENT_BYTES) for n in (model.r_state, model.s_state))
    return recurrent * each


def attention_mask_bytes(model: ModelLayers, use: ContextUse) -> int:
    """Bytes of flash attention's masks: 1 KiB for each token of context.

    Only this part of a batch's working memory grows with the context; the rest is in the measured peak.
    """
    kinds = {layer.windowed for layer in model.layers if layer.k}
    cells = sum(use.window_cells(model.window) if windowed else use.cells for windowed in kinds)
    return cells * use.batch * _MASK_BYTES


def context_bytes(model: ModelLayers, use: ContextUse, cache_type: str = DEFAULT_CACHE) -> int:
    """Bytes of everything that grows with the context: caches, states and masks."""
    return context_cache_bytes(model, use, cache_type) + attention_mask_bytes(model, use)


def can_quantize_kv_cache(model: ModelLayers) -> bool:
    """Whether llama.cpp supports a cache in 8 or 4 bits for this model, and it would be smaller."""
    return all(layer.in_blocks for layer in model.layers) and any(layer.k for layer in model.layers)


def _padded_cells(n: int, step: int) -> int:
    return -(-n // step) * step
