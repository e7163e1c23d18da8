"""How many models the local server keeps loaded, how many requests each answers at once, and with how many tokens of
context, decided as server/image/defaults.sh does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model
from quantyard.formats.purpose import gguf_purpose
from quantyard.hardware.machine import available_memory_bytes
from quantyard.memory.kv_cache import CELL_STEP, ContextUse, context_cache_bytes
from quantyard.memory.layers import read_cache_layers
from quantyard.protocol.cache_types import DEFAULT_CACHE

MAX_CONTEXT: Final = 32768
USEFUL_CONTEXT: Final = 2048
MIN_CONTEXT: Final = 512
PARALLEL: Final = 4
KEPT: Final = 4
_UNKNOWN_TRAINED: Final = 4096


@dataclass(frozen=True)
class ServedContext:
    """What a server promises to each request at the same time, `context_size // parallel` tokens, and can hold.

    Attributes:
        context_size: tokens of all requests of a model together.
        parallel: requests of a model answered at once.
        kept: models that stay loaded.
    """

    context_size: int
    parallel: int
    kept: int


def decide_served_context(
    files: Sequence[Path], context_size: int = 0, memory_bytes: int | None = None, parallel: int = PARALLEL,
    cache_type: str = DEFAULT_CACHE,
) -> ServedContext:
    """The training context for each request, at most MAX_CONTEXT in all, and at most half of the memory that the models
    which stay loaded leave free. Fewer models stay loaded, then fewer requests are answered at once, until each has
    USEFUL_CONTEXT tokens.

    Args:
        context_size: as the user set it; 0: to be decided.
        memory_bytes: available; None: of this machine, now.
        parallel: requests at once, at most.
        cache_type: of the KV cache.
    """
    memory = available_memory_bytes() if memory_bytes is None else memory_bytes
    needs = _Needs(list(filter(None, map(_header_of_served_file, files))), memory, cache_type)
    most = max(1, min(KEPT, len(files)))
    kept = _largest_context_that_fits(most, lambda n: needs.has_room(n, context_size, parallel))
    slots = _largest_context_that_fits(parallel, lambda n: (context_size or needs.context(kept, n)) >= needs.useful(n))
    return ServedContext(context_size or max(needs.context(kept, slots), MIN_CONTEXT), slots, kept)


def _largest_context_that_fits(most: int, is_enough: Callable[[int], bool]) -> int:
    """The largest number from `most` down for which it holds, or 1."""
    return next((n for n in range(most, 1, -1) if is_enough(n)), 1)


@dataclass(frozen=True)
class _Needs:
    """What these models need of a memory."""

    headers: Sequence[GgufHeader]
    memory_bytes: int
    cache_type: str = DEFAULT_CACHE

    @property
    def trained(self) -> int:
        """The context that all of them were trained with, or those that generate text, if there are some."""
        writers = [header for header in self.headers if gguf_purpose(header) == "generate"] or self.headers
        return min((header.context_length or _UNKNOWN_TRAINED for header in writers), default=_UNKNOWN_TRAINED)

    def useful(self, slots: int) -> int:
        return min(min(self.trained, USEFUL_CONTEXT) * slots, MAX_CONTEXT)

    def has_room(self, kept: int, context_size: int, slots: int) -> bool:
        """Whether so many stay loaded with the context that is set, or one of use."""
        if context_size:
            return self._cache_bytes(kept, context_size, slots) <= self._room_bytes(kept)
        return self.context(kept, slots) >= self.useful(slots)

    def context(self, kept: int, slots: int) -> int:
        """The tokens of all slots of each model, if so many stay loaded."""
        wanted = min(self.trained * slots, MAX_CONTEXT)
        if self._cache_bytes(kept, wanted, slots) <= self._room_bytes(kept):
            return wanted
        steps = range(0, wanted, CELL_STEP)
        n = bisect_right(steps, self._room_bytes(kept), key=lambda tokens: self._cache_bytes(kept, tokens, slots))
        return steps[n - 1] if n else 0

    def _room_bytes(self, kept: int) -> int:
        """Half of what the largest of them leave free."""
        weights = sorted((header.tensor_bytes for header in self.headers), reverse=True)
        return (self.memory_bytes - sum(weights[:kept])) // 2

    def _cache_bytes(self, kept: int, tokens: int, slots: int) -> int:
        """Of the largest of them, as far as the metadata tells."""
        use = ContextUse(tokens, slots, unified=False)
        known = (layers for header in self.headers if (layers := read_cache_layers(header)))
        caches = (context_cache_bytes(layers, use, self.cache_type) for layers in known)
        return sum(sorted(caches, reverse=True)[:kept]) if tokens else 0


def _header_of_served_file(path: Path) -> GgufHeader | None:
    """None: llama.cpp will say what is wrong with the file."""
    with suppress(GgufError, OSError):
        return read_gguf_model(path)
    return None
