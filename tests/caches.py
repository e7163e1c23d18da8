"""Measured types of the KV cache, for tests: simulated values on the files of a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantyard.protocol.cache_results import CacheMeasurement, CachePosition, CacheTypeResult
from quantyard.protocol.cache_types import CacheRefusal, CacheSettings
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.store.manifest import Manifest


def cache_measurement(label: str, klds: Mapping[str, float], refused: Mapping[str, CacheRefusal] | None = None,
                      n_tokens: int = 8190) -> CacheMeasurement:
    """Beside f16, each of these types with its mean divergence from it, and those that llama.cpp refuses."""
    f16 = CacheTypeResult(type="f16", baseline_kld=Estimate(value=0.04, stderr=0.001, df=7), bytes_per_token=32768.0)
    results = [f16, *(_result(name, kld) for name, kld in klds.items())]
    results += [CacheTypeResult(type=name, refusal=reason, detail="llama.cpp's words")
                for name, reason in (refused or {}).items()]  # fmt: skip
    return CacheMeasurement(
        label=label, text="Quantyard's prose", n_ctx=4096, n_chunks=2, n_tokens=n_tokens, results=tuple(results),
        settings=CacheSettings(), threads=2, n_gpu_layers=0,
    )


def _result(name: str, kld: float) -> CacheTypeResult:
    found = Estimate(value=kld, stderr=kld / 20, df=7)
    near = Estimate(value=kld / 2, stderr=kld / 20, df=7)
    return CacheTypeResult(
        type=name, mean_kld=found, p99_kld=12 * kld, top1_agreement=Estimate(value=0.98, stderr=0.002, df=7),
        by_position=(CachePosition(first=1, last=255, n_tokens=510, mean_kld=near),
                     CachePosition(first=256, last=4095, n_tokens=7680, mean_kld=found)),
        baseline_kld=Estimate(value=0.04 + kld, stderr=0.001, df=7), bytes_per_token=17408.0,
        prompt_speed=Interval(value=0.97, low=0.94, high=1.0),
        generation_speed=Interval(value=1.12, low=1.05, high=1.2),
    )


def add_caches(manifest: Manifest, measured: Mapping[str, CacheMeasurement], suites: Sequence[str] = ()) -> None:
    """Put these measurements into the manifest's reports."""
    for suite, report in manifest.evaluations.items():
        if not suites or suite in suites:
            found = tuple(m.model_copy(update={"cache": measured.get(m.file.label)}) for m in report.measurements)
            manifest.evaluations[suite] = report.model_copy(update={"measurements": found})
