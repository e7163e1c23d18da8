"""The tokens of context that the local server keeps without CONTEXT_SIZE, decided as server/image/defaults.sh does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model
from quantyard.hardware.machine import available_memory_bytes
from quantyard.memory.kv_cache import ContextUse, context_cache_bytes
from quantyard.memory.layers import read_cache_layers

MAX_CONTEXT: Final = 32768
MIN_CONTEXT: Final = 512
_UNKNOWN_TRAINED: Final = 4096


def default_context_size(files: Sequence[Path], parallel: int, memory_bytes: int | None = None) -> int:
    """Tokens for all requests together: the training context for each, at most MAX_CONTEXT in all, and at most half of
    the memory that the largest model leaves free.

    Args:
        memory_bytes: available; None: of this machine, now.
    """
    memory = available_memory_bytes() if memory_bytes is None else memory_bytes
    return min((_context_size(path, parallel, memory) for path in files), default=MAX_CONTEXT)


def _context_size(path: Path, parallel: int, memory_bytes: int) -> int:
    tokens = _UNKNOWN_TRAINED * parallel
    with suppress(GgufError, OSError):  # llama.cpp will say what is wrong with the file
        header = read_gguf_model(path)
        tokens = min((header.context_length or _UNKNOWN_TRAINED) * parallel, MAX_CONTEXT)
        room_bytes = (memory_bytes - header.tensor_bytes) // 2
        while tokens > MIN_CONTEXT and _cache_bytes(header, tokens, parallel) > room_bytes:
            tokens //= 2
    return max(tokens, MIN_CONTEXT)


def _cache_bytes(header: GgufHeader, tokens: int, parallel: int) -> int:
    """0 if the metadata does not tell."""
    layers = read_cache_layers(header)
    return context_cache_bytes(layers, ContextUse(tokens, parallel)) if layers else 0
