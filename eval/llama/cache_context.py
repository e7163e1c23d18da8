"""Contexts with one type of the KV cache each: what llama.cpp allocates for them, and why it refuses some."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

import llama_cpp

from eval.llama.context import Context, ContextSettings
from eval.llama.model import LOG, GgufModel
from quantyard.protocol.cache_types import CACHE_REFUSALS, DEFAULT_CACHE, CacheRefusal, cache_type_pair
from quantyard.protocol.runner import StageFailure

# A line of `llama_kv_cache`: size, cells, layers, sequences, then the types and sizes of keys and of values.
_ALLOCATED: Final = re.compile(
    r"size =\s*[\d.]+ MiB \(\s*(\d+) cells.*?K \(\w+\):\s*([\d.]+) MiB, V \(\w+\):\s*([\d.]+) MiB"
)
_MIB: Final = 2**20
# Words of llama.cpp's last lines → the reason (`llama_init_from_model` and `llama_context`, src/llama-context.cpp).
_WORDS: Final[tuple[tuple[str, CacheRefusal], ...]] = (
    ("does not divide n_embd_head", "HEAD_SIZE"),
    ("requires flash", "NO_FLASH_ATTENTION"),
)


@dataclass(frozen=True)
class CacheAllocated:
    """Bytes of the KV cache that llama.cpp allocated for one token of context: of keys, and of values."""

    k: float
    v: float


class CacheRefused(Exception):
    """llama.cpp cannot run this type of the cache for this model."""

    def __init__(self, reason: CacheRefusal, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def open_cache_context(model: GgufModel, cache_type: str, settings: ContextSettings) -> tuple[Context, CacheAllocated]:
    """A context with this type of the cache, and what it takes.

    Args:
        cache_type: such as `q8_0` or `q8_0/f16`.

    Raises:
        CacheRefused: the type is not possible for this model.
        StageFailure: the context cannot be opened with any type.
    """
    k, v = cache_type_pair(cache_type)
    if reason := cache_refusal(model, k, v):
        raise CacheRefused(reason)
    lines: list[str] = []
    try:
        with LOG.heard_by(lines.append):
            context = Context(model, replace(settings, cache_types=(k, v)))
    except StageFailure as failure:
        if (k, v) == (DEFAULT_CACHE, DEFAULT_CACHE):
            raise
        raise cache_refused(failure.error.detail) from failure
    allocated = cache_allocated(lines)
    if not allocated.v and k != v:
        context.close()
        raise CacheRefused("NO_V_CACHE")
    return context, allocated


def cache_refusal(model: GgufModel, k: str, v: str) -> CacheRefusal:
    """Why this type is not even tried: llama.cpp would ignore it, or abort; "" otherwise."""
    if (k, v) != (DEFAULT_CACHE, DEFAULT_CACHE) and llama_cpp.llama_model_is_recurrent(model.handle):
        return "NO_KV_CACHE"
    if model.has_encoder and (k, v) != (DEFAULT_CACHE, DEFAULT_CACHE):
        return "ENCODER_DECODER"
    return ""


def cache_refused(words: str) -> CacheRefused:
    """The refusal that llama.cpp's last lines tell."""
    said = words.lower()
    reason: CacheRefusal = next((reason for part, reason in _WORDS if part in said), "REFUSED")
    lines = [line for line in words.splitlines() if line.strip()]
    return CacheRefused(reason, lines[-1].strip()[:200] if lines else CACHE_REFUSALS[reason])


def cache_allocated(lines: list[str]) -> CacheAllocated:
    """The sum of the caches in llama.cpp's log: a model with sliding windows has two."""
    found = [match.groups() for line in lines if (match := _ALLOCATED.search(line))]
    k, v = (sum(float(row[at]) * _MIB / int(row[0]) for row in found) for at in (1, 2))
    return CacheAllocated(k, v)
