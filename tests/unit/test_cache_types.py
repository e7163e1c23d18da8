"""The types of the KV cache: their names, and what is computed of each, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.analysis.cache_types import cache_kld_by_position, cache_positions, paired_speed_share
from quantyard.protocol.cache_types import CacheSettings, cache_type_name, cache_type_pair


@pytest.mark.parametrize(
    ("text", "pair", "name"),
    [
        ("q8_0", ("q8_0", "q8_0"), "q8_0"), (" Q8_0/Q8_0 ", ("q8_0", "q8_0"), "q8_0"),
        ("q8_0/f16", ("q8_0", "f16"), "q8_0/f16"), ("f16/iq4_nl", ("f16", "iq4_nl"), "f16/iq4_nl"),
    ],
)  # fmt: skip
def test_a_type_is_named_once_or_for_keys_and_values_apart(text: str, pair: tuple[str, str], name: str) -> None:
    assert (cache_type_pair(text), cache_type_name(text)) == (pair, name)


@pytest.mark.parametrize("text", ["", "q8", "q8_0/", "q8_0/f16/f16", "q4_k", "q8_0,q4_0"])
def test_what_is_not_a_type_of_a_cache_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="q8_0, q5_1"):
        cache_type_pair(text)


def test_a_suite_may_write_a_type_in_capitals_and_keeps_its_one_spelling() -> None:
    assert CacheSettings(types=("Q8_0/q8_0", "F16/Q4_0")).types == ("q8_0", "f16/q4_0")


@pytest.mark.parametrize(
    ("n_rows", "spans"),
    [
        (100, [(1, 100)]), (511, [(1, 511)]), (512, [(1, 511), (512, 512)]),
        (4095, [(1, 511), (512, 2047), (2048, 4095)]),
        (40_000, [(1, 511), (512, 2047), (2048, 8191), (8192, 16_383), (16_384, 32_767), (32_768, 40_000)]),
    ],
)  # fmt: skip
def test_ranges_of_context_are_those_of_the_long_domain_and_hold_every_row_once(
    n_rows: int, spans: list[tuple[int, int]]
) -> None:
    assert list(cache_positions(n_rows)) == spans


def test_divergence_by_position_is_the_mean_over_the_same_rows_of_every_chunk() -> None:
    kld = np.concatenate([np.repeat([1.0, 3.0], [511, 45]), np.repeat([2.0, 5.0], [511, 45])])
    near, far = cache_kld_by_position(kld, 2)
    assert (near.first, near.last, near.n_tokens, near.mean_kld.value) == (1, 511, 1022, 1.5)
    assert (far.first, far.last, far.n_tokens, far.mean_kld.value) == (512, 556, 90, 4.0)
    # Each chunk of the far rows is four clusters: 3, 3, 3, 3, 5, 5, 5, 5, but for the rounding of 90 / 8.
    assert far.mean_kld.stderr == pytest.approx(math.sqrt(8 / 7) / math.sqrt(8), rel=0.05)


def test_the_speed_share_is_the_geometric_mean_of_pairs_with_students_interval() -> None:
    # Shares 2 and 8: logarithms ln 2 and 3 ln 2, mean 2 ln 2, standard error ln 2; t of 1 degree of freedom 12.706.
    found = paired_speed_share([2.0, 8.0], [1.0, 1.0])
    assert found is not None
    assert found.value == pytest.approx(4)
    assert found.high == pytest.approx(4 * 2**12.7062, rel=1e-4)
    assert found.low == pytest.approx(4 / 2**12.7062, rel=1e-4)


def test_what_slows_both_of_a_pair_down_does_not_widen_the_interval() -> None:
    slow = [1.0, 3.0, 1.0, 5.0]
    found = paired_speed_share(slow, [x / 1.25 for x in slow])
    assert found is not None and (found.low, found.value, found.high) == pytest.approx((1.25,) * 3)


def test_one_pair_has_no_interval() -> None:
    assert paired_speed_share([1.0], [1.0]) is None
