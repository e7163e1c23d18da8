"""`make serve CACHE_TYPE=…`: a smaller KV cache is served only where its cost was measured."""

from __future__ import annotations

import pytest

from quantyard.choose.measured_candidate import why_not_with_cache
from tests.caches import add_caches, cache_measurement
from tests.manifests import manifest_of


@pytest.mark.parametrize(("cache_type", "said"), [
    ("f16", ""), ("q8_0", ""), ("q4_0", "CACHE_NOT_MEASURED"), ("f16/q4_0", "NO_FLASH_ATTENTION"),
])  # fmt: skip
def test_f16_needs_no_measurement_and_every_other_type_does(cache_type: str, said: str) -> None:
    manifest = manifest_of()
    found = cache_measurement("Q4_K_M", {"q8_0": 0.001}, {"f16/q4_0": "NO_FLASH_ATTENTION"})
    add_caches(manifest, {"Q4_K_M": found})
    why = why_not_with_cache(manifest, "Q4_K_M", cache_type)
    assert said in why and bool(why) is bool(said)


def test_the_suite_that_read_most_text_decides_what_a_type_costs() -> None:
    from quantyard.choose.measured_candidate import measured_caches

    manifest = manifest_of()
    manifest.evaluations["cache"] = manifest.evaluations["standard"]
    add_caches(manifest, {"Q4_K_M": cache_measurement("Q4_K_M", {"q8_0": 0.001}, n_tokens=255)}, ["standard"])
    add_caches(manifest, {"Q4_K_M": cache_measurement("Q4_K_M", {"q8_0": 0.002}, n_tokens=8190)}, ["cache"])
    values = [found.mean_kld.value for found in measured_caches(manifest, "Q4_K_M") if found.mean_kld]
    assert values == [0.002]
