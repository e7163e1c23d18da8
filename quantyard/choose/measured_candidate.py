"""What was measured of a file that can be chosen, by any suite: its caches, its worst domain, its behaviours.

Only measurements of the file's current bytes count.
"""

from __future__ import annotations

from typing import Final

from quantyard.metrics.choice import worse_behaviours
from quantyard.metrics.domain_figures import worst_domain
from quantyard.protocol.cache_results import CacheTypeResult
from quantyard.protocol.cache_types import CACHE_REFUSALS, DEFAULT_CACHE
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import EvalReport, Measurement
from quantyard.protocol.removals import Removal, RemovalName
from quantyard.store.manifest import Manifest

CACHE_NOT_MEASURED: Final = "CACHE_NOT_MEASURED"  # for programs: the reason of a file without this type of the cache


def cache_removal(manifest: Manifest, quant: str, cache_type: str) -> Removal | None:
    """Why this file cannot be served with this type of the KV cache, as a reason; None if it can."""
    text = why_not_with_cache(manifest, quant, cache_type)
    name: RemovalName = "CACHE_NOT_MEASURED" if CACHE_NOT_MEASURED in text else "CACHE_REFUSED"
    return Removal(name=name, text=text) if text else None


def why_not_with_cache(manifest: Manifest, quant: str, cache_type: str) -> str:
    """Why this file cannot be served with this type of the KV cache; "" if it can."""
    if cache_type == DEFAULT_CACHE:
        return ""
    results = measured_caches(manifest, quant)
    if refused := next((one for one in results if one.type == cache_type and one.refusal), None):
        return f"cannot have a {cache_type} KV cache ({refused.refusal}): {CACHE_REFUSALS[refused.refusal]}"
    if any(one.type == cache_type for one in results):
        return ""
    return f"was not measured with a {cache_type} KV cache ({CACHE_NOT_MEASURED})"


def measured_caches(manifest: Manifest, quant: str) -> tuple[CacheTypeResult, ...]:
    """The types of the KV cache that were measured on the current bytes of this file, by any suite.

    Where several suites measured a type, the one that read most tokens counts.
    """
    record, best = manifest.quants[quant], dict[str, tuple[int, CacheTypeResult]]()
    for report in manifest.evaluations.values():
        found = candidate_measurement(report, quant)
        if found is None or found.cache is None or found.file.sha256 != record.sha256:
            continue
        for result in found.cache.results:
            if result.type not in best or best[result.type][0] < found.cache.n_tokens:
                best[result.type] = found.cache.n_tokens, result
    return tuple(result for _, result in best.values())


def measured_worst_domain(manifest: Manifest, quant: str) -> Interval | None:
    """Of the suite that read most domains with the current bytes of this file."""
    found = [worst for m in _candidate_measurements(manifest, quant) if (worst := worst_domain(m.domains))]
    return max(found, key=lambda worst: worst.n_domains).mean_kld if found else None


def measured_worse_behaviours(manifest: Manifest, quant: str) -> int | None:
    """Of the suite that asked most behaviours."""
    asked = [m for m in _candidate_measurements(manifest, quant) if m.behaviours]
    return worse_behaviours(max(asked, key=lambda m: len(m.behaviours))) if asked else None


def _candidate_measurements(manifest: Manifest, quant: str) -> list[Measurement]:
    """What any suite measured of the current bytes of this file."""
    found = (candidate_measurement(report, quant) for report in manifest.evaluations.values())
    return [m for m in found if m and m.file.sha256 == manifest.quants[quant].sha256]


def candidate_measurement(report: EvalReport, quant: str) -> Measurement | None:
    """What this report measured of a file of this name, whatever its bytes were; None if nothing."""
    return next((m for m in report.measurements if m.file.label == quant), None)
