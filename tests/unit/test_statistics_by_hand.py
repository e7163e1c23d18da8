"""Statistics against calculations by hand: numbers small enough to follow with a pencil."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.analysis.cache_types import cache_divergence
from eval.analysis.domain_divergence import DomainTokens, domain_numbers, domain_parts
from eval.analysis.kl_divergence import (
    TokenValues,
    cluster_means,
    clustered_mean_estimate,
    divergence_parts,
    document_cluster_ends,
    perplexity_value,
    rms_estimate,
)
from eval.analysis.rankings import mean_of_queries
from eval.analysis.statistics import bits_change_p, design_effect, paired_means_p, perplexity_change_p
from quantyard.metrics.intervals import (
    estimate_interval,
    interval_difference,
    mapped_interval,
    normal_quantile,
    normal_share_below,
    t_quantile,
    t_share_within,
)
from quantyard.metrics.power import smallest_difference
from quantyard.protocol.estimates import Estimate, Interval

# ---- distributions -----------------------------------------------------------------------------------


def test_students_distribution_of_one_and_two_degrees_has_a_closed_form() -> None:
    # df = 1: P(|T| < t) = 2 / π · atan t; df = 2: t / √(2 + t²)
    assert t_share_within(1.0, 1) == pytest.approx(0.5)
    assert t_share_within(2.0, 2) == pytest.approx(2 / math.sqrt(6))
    assert t_share_within(2.0, 4) == pytest.approx(0.8838835, abs=1e-6)  # √2/2 · (1 + 1/4): sin(atan 1), cos² = 1/2


def test_a_fractional_number_of_degrees_lies_between_its_neighbours_in_one_over_df() -> None:
    # 1 / 1.5 lies at (1 - 2/3) / (1 - 1/2) = 2/3 of the way from df = 1 (12.706) to df = 2 (4.303)
    assert t_quantile(1.5) == pytest.approx(12.7062 + 2 / 3 * (4.30265 - 12.7062), abs=1e-3)


def test_the_normal_distribution_is_that_of_the_tables() -> None:
    assert normal_share_below(-1.0) == pytest.approx(0.158655, abs=1e-6)
    assert normal_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)


def test_an_estimate_without_degrees_of_freedom_has_the_normal_interval() -> None:
    assert estimate_interval(Estimate(value=1.0, stderr=0.5)).high == pytest.approx(1 + 0.5 * 1.959964)
    assert estimate_interval(Estimate(value=1.0, stderr=0.5, df=2)).high == pytest.approx(1 + 0.5 * 4.30265, abs=1e-5)


def test_a_difference_of_estimates_by_clusters_and_without() -> None:
    # clusters differ by 1, 2, 3: mean 2, standard error 1 / √3, df 2
    clusters = ((4.0, 6.0, 8.0), (3.0, 4.0, 5.0))
    one, other = (Estimate(value=sum(of) / 3, stderr=9.0, df=9, clusters=of) for of in clusters)
    found = interval_difference(one, other)
    assert (found.value, found.high) == (2.0, pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-5))
    # independent: √(3² + 4²) = 5, with the smaller df
    alone = interval_difference(Estimate(value=5.0, stderr=3.0, df=2), Estimate(value=1.0, stderr=4.0, df=8))
    assert (alone.value, alone.high) == (4.0, pytest.approx(4 + 5 * 4.30265, abs=1e-4))


def test_an_interval_that_overflows_in_the_other_unit_is_none() -> None:
    assert mapped_interval(Interval(value=0.0, low=-1.0, high=2.0), math.exp) == Interval(
        value=1.0, low=math.exp(-1), high=math.exp(2)
    )
    assert mapped_interval(Interval(value=0.0, low=0.0, high=1e4), math.exp) is None


# ---- tests of differences ----------------------------------------------------------------------------


def test_the_p_of_paired_means_is_students() -> None:
    # differences 1, 2, 3: t = 2 / (1 / √3) = 2√3 with df 2; P(|T| > t) = 1 - t / √(2 + t²) = 1 - √(12 / 14)
    assert paired_means_p(np.zeros(3), np.array([1.0, 2.0, 3.0])) == pytest.approx(1 - math.sqrt(12 / 14))


def test_differences_that_are_all_alike_have_the_p_of_the_sign_test() -> None:
    assert paired_means_p(np.zeros(5), np.ones(5)) == 2**-4  # all of five on one side, two-sided
    assert paired_means_p(np.ones(5), np.ones(5)) == 1.0


def test_the_p_of_a_perplexitys_change_is_that_of_the_mean_loss_per_word() -> None:
    # documents of one word, losing 1, 2 and 3 nats: as the paired means above
    lls, worse, words = np.array([-5.0, -5.0, -5.0]), np.array([-6.0, -7.0, -8.0]), np.ones(3)
    assert perplexity_change_p(lls, worse, words) == pytest.approx(1 - math.sqrt(12 / 14))


def test_the_p_of_a_change_of_bits_is_that_of_the_ratio_from_one() -> None:
    # ratios 1.1, 1.2, 1.3 of equal documents: mean 1.2, standard error 0.1 / √3, t = 2√3 again
    base = np.array([-10.0, -10.0, -10.0])
    assert bits_change_p(base, base * [1.1, 1.2, 1.3]) == pytest.approx(1 - math.sqrt(12 / 14))


def test_a_design_effect_by_hand() -> None:
    # two pairs of twins, 1 1 0 0: independent √(1/3) / √4 = 0.28868 · 1.96; grouped √(1/2) / √2 = 0.5 · t(1) = 12.706
    effect = design_effect(np.array([1.0, 1.0, 0.0, 0.0]), [7, 7, 9, 9])
    assert effect == pytest.approx((0.5 * 12.7062 / (0.288675 * 1.959964)) ** 2, rel=1e-4)
    assert design_effect(np.array([1.0, 1.0, 1.0, 1.0]), [7, 7, 9, 9]) == 1.0


def test_the_smallest_difference_by_hand() -> None:
    # all questions may flip and all are losses: n·d >= 1.96 √(n·d) + 0.8416 √(n (d - d²)) + 1 with n = 100.
    # d = 0.075: 7.5 >= 1.96 · 2.7386 + 0.8416 · 2.6339 + 1 = 8.58, not found; 0.095: 9.5 >= 6.041 + 2.468 + 1 = 9.509
    # by a hair not; 0.096: 9.6 >= 6.073 + 2.479 + 1 = 9.552 found
    found = smallest_difference(100, 0.0)
    assert found is not None and 0.095 < found < 0.096
    assert smallest_difference(3, 0.0) is None, "3 losses of 3 prove nothing"


# ---- tokens ------------------------------------------------------------------------------------------

KLD = np.array([0.0, 2.0, 1.0, 3.0, 4.0, 8.0])
VALUES = TokenValues(nll=np.log([2.0, 2, 4, 4, 8, 8]), kld=KLD, delta_p=np.array([1.0, -1, 1, -1, 1, -1]),
                     same_top=np.array([True, True, False, True, False, True]))  # fmt: skip


def test_a_mean_over_clusters_of_unequal_length() -> None:
    # clusters (0, 2) and (1, 3, 4, 8), mean 3: residuals -4 and 4, so what they say is 3 ± 4 · 2 / 6
    ends = np.array([2, 6], np.int32)
    assert cluster_means(KLD, ends) == pytest.approx([3 - 4 / 3, 3 + 4 / 3])
    found = clustered_mean_estimate(KLD, ends)
    assert (found.value, found.stderr) == (3.0, pytest.approx(4 / 3))  # (8/3) / √2 / √2
    # Kish: (2 + 4)² / (4 + 16) - 1 = 0.8, and 1 at least
    assert found.df == 1.0
    # three clusters of 1, 2 and 3: 36 / 14 - 1
    assert clustered_mean_estimate(KLD, np.array([1, 3, 6], np.int32)).df == pytest.approx(36 / 14 - 1)


def test_few_documents_are_cut_in_equal_pieces() -> None:
    # 4 documents make 8 clusters, so each is two: 5 tokens are 2 and 3, an empty one nothing
    assert document_cluster_ends([4, 5, 0, 2, 6]).tolist() == [2, 4, 6, 9, 10, 11, 14, 17]


def test_a_domain_has_mean_p99_and_agreement_of_its_tokens() -> None:
    document, position = np.repeat([0, 1], 3).astype(np.int32), np.tile([0, 1, 2], 2).astype(np.int32)
    tokens = DomainTokens(document=document, position=position, kind=np.array(["text"] * 6))
    found = domain_numbers(VALUES, VALUES.nll, tokens)
    assert found["mean_kld"].value == 3.0 and found["top1_agreement"].value == pytest.approx(4 / 6)
    assert found["kld_p99"] == pytest.approx(4 + 0.95 * 4)  # at 0.99 · 5 = 4.95 between the 5th, 4, and the 6th, 8
    assert found["perplexity"].value == pytest.approx(4.0)  # exp of the mean of ln 2, ln 4, ln 8
    assert domain_parts(VALUES, tokens, tokens.kind) == (), "six tokens say nothing by themselves"


def test_a_root_mean_square_has_half_the_relative_error_of_the_square() -> None:
    # squares 1 in every cluster: no error; squares 0, 4 by two chunks of one: mean 2, error 2, so 0.5 · 2 / √2
    assert rms_estimate(VALUES.delta_p, 2) == Estimate(value=1.0, stderr=0.0, df=5)
    found = rms_estimate(np.array([0.0, 2.0]), 2)
    assert (found.value, found.stderr) == (pytest.approx(math.sqrt(2)), pytest.approx(1 / math.sqrt(2)))


def test_a_cache_type_has_its_mean_p99_and_agreement() -> None:
    found = cache_divergence(VALUES, 1)
    assert found["mean_kld"].value == 3.0 and found["p99_kld"] == pytest.approx(7.8)
    assert found["top1_agreement"].value == pytest.approx(4 / 6)


def test_the_backends_part_is_the_rest() -> None:
    parts = divergence_parts(np.array([1.0, 1.0, 2.0, 2.0]), np.array([2.0, 3.0, 3.0, 4.0]), 2)
    assert (parts.whole.value, parts.of_file.value, parts.of_backend.value) == (3.0, 1.5, 1.5)
    # differences 1, 2, 1, 2, each a cluster: standard deviation √(1/3), error √(1/3) / 2
    assert parts.of_backend.stderr == pytest.approx(math.sqrt(1 / 3) / 2)


def test_a_perplexity_is_the_geometric_mean_of_the_surprises() -> None:
    assert perplexity_value(np.log([2.0, 8.0])) == pytest.approx(4.0)


def test_the_mean_over_queries_has_the_error_of_independent_values() -> None:
    # 1, 2, 3: standard deviation 1, error 1 / √3
    assert mean_of_queries([1.0, 2.0, 3.0]) == Estimate(value=2.0, stderr=1 / math.sqrt(3))
    assert mean_of_queries([2.0]) == Estimate(value=2.0, stderr=0.0)
