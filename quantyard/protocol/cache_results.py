"""The record of `cache`: the types of the KV cache on one file, each beside f16."""

from quantyard.protocol.base import Frozen
from quantyard.protocol.cache_types import CacheName, CacheRefusal, CacheSettings
from quantyard.protocol.estimates import Estimate, Interval


class CachePosition(Frozen):
    """The divergence of the tokens that are predicted from `first` to `last` tokens of context."""

    first: int
    last: int
    n_tokens: int
    mean_kld: Estimate


class CacheTypeResult(Frozen):
    """One type of the KV cache on one file, beside the same file with f16.

    A type that llama.cpp cannot run has a `refusal` in place of results. Bytes are those that llama.cpp allocates for a
    token of context with all windows kept; speeds are shares of the speed with f16, paired repeat by repeat.
    """

    type: CacheName  # q8_0, or q8_0/f16 for keys and values apart
    refusal: CacheRefusal = ""
    detail: str = ""  # llama.cpp's words of a refusal
    mean_kld: Estimate | None = None  # KL(f16 || type), nats; None for f16
    p99_kld: float | None = None
    top1_agreement: Estimate | None = None
    by_position: tuple[CachePosition, ...] = ()
    baseline_kld: Estimate | None = None  # KL(baseline with f16 || this file with this type)
    bytes_per_token: float | None = None
    prompt_speed: Interval | None = None
    generation_speed: Interval | None = None


class CacheMeasurement(Frozen):
    """The types of the KV cache on one file; the first result is that of f16."""

    label: str
    text: str  # name of the text
    n_ctx: int
    n_chunks: int
    n_tokens: int  # scored
    results: tuple[CacheTypeResult, ...]
    settings: CacheSettings
    threads: int
    n_gpu_layers: int
    duration_s: float = 0.0
