"""The type of the KV cache that a choice may count on: only one that was measured on that very file.

A smaller cache costs one model nothing and another more than its weights in 4 bits, so nothing is concluded from other
models, other quants or the type's number of bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.choose.candidates import (
    ChoiceCandidate,
    ChoiceSet,
    candidate_memory_bytes,
    choice_eval_command,
)
from quantyard.choose.measured_candidate import CACHE_NOT_MEASURED
from quantyard.choose.pick import ChoiceBudget
from quantyard.formatting.numbers import format_kld, format_kld_interval, format_memory
from quantyard.memory.kv_cache import can_quantize_kv_cache
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.cache_results import CacheTypeResult
from quantyard.protocol.cache_types import DEFAULT_CACHE

_TRIED: Final = ("q8_0", "q4_0")  # whose memory is named where none was measured


@dataclass(frozen=True)
class SmallerCache:
    """A measured type of the cache with which a file fits, and the memory that it then takes."""

    found: CacheTypeResult
    memory_bytes: int


def smaller_measured_caches(
    candidate: ChoiceCandidate, choices: ChoiceSet, budget: ChoiceBudget
) -> Sequence[SmallerCache]:
    """The measured types with which this file meets the limits of memory and divergence, the least divergence first."""
    fits = []
    for found in candidate.cache_results:
        memory = candidate_memory_bytes(candidate, choices.use, found.type)
        if found.mean_kld and memory is not None and memory <= budget.memory_bytes and _keeps_kld(found, budget):
            fits.append(SmallerCache(found, memory))
    return sorted(fits, key=lambda fit: fit.found.mean_kld.value if fit.found.mean_kld else 0.0)


def _keeps_kld(found: CacheTypeResult, budget: ChoiceBudget) -> bool:
    return budget.max_kld is None or (found.baseline_kld is not None and found.baseline_kld.value <= budget.max_kld)


def suggestions_of_smaller_cache(
    candidate: ChoiceCandidate, choices: ChoiceSet, budget: ChoiceBudget, model: str
) -> Iterator[str]:
    """The measured type with which this file fits; where none was measured, the command that measures."""
    if choices.cache_type != DEFAULT_CACHE or candidate.layers is None or not can_quantize_kv_cache(candidate.layers):
        return
    if fits := smaller_measured_caches(candidate, choices, budget):
        found, memory = fits[0].found, format_memory(fits[0].memory_bytes)
        cost = cache_cost_sentence(found)
        yield f"A smaller KV cache: {candidate.quant} takes {memory} with CACHE_TYPE={found.type}; {cost}."
        return
    if any(found.mean_kld for found in candidate.cache_results):
        return
    for name in _TRIED:
        memory_bytes = candidate_memory_bytes(candidate, choices.use, name)
        if memory_bytes is not None and memory_bytes <= budget.memory_bytes:
            yield (
                f"{CACHE_NOT_MEASURED}: {candidate.quant} would take {format_memory(memory_bytes)} with a {name} KV "
                "cache, whose cost in quality is not known. Measure it: "
                f"{choice_eval_command(choices, model, suite='cache')}"
            )
            return


def cache_cost_sentence(found: CacheTypeResult) -> str:
    """What this type costs, as measured: "KLD from f16 0.0012 (0.0011 to 0.0013) on this file"."""
    if found.mean_kld is None:
        return "the reference"
    told = f"KLD from f16 {format_kld_interval(estimate_interval(found.mean_kld))} on this file"
    if len(found.by_position) > 1:
        deepest = found.by_position[-1]
        told += f", {format_kld(deepest.mean_kld.value)} from {deepest.first} tokens of context on"
    return told
