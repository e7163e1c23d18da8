"""How much of each domain is read, what is scored of it, and the numbers, held against hand calculations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.analysis.domain_divergence import DomainTokens, domain_numbers, domain_parts, position_names
from eval.analysis.domain_passages import Passage, passage_batches
from eval.analysis.domain_texts import LONG, domain_reading_lengths, read_domain_texts
from eval.analysis.kl_divergence import TokenValues, clustered_mean_estimate, document_cluster_ends
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import DomainSettings
from quantyard.protocol.runner import StageFailure

# ---- the texts ---------------------------------------------------------------------------------------


def test_our_texts_are_documents_or_conversations_of_known_domains() -> None:
    texts = read_domain_texts(Path("/nowhere"), DomainSettings())
    names = [text.name for text in texts]
    assert {"prose", "code", "chat"} <= set(names) and len(set(names)) == len(names)
    assert all(text.documents for text in texts)
    assert [text.name for text in texts if text.is_chat] == [name for name in names if name in ("chat", "tools")]
    assert LONG not in [text.name for text in read_domain_texts(Path("/nowhere"), DomainSettings(long_documents=0))]


@pytest.mark.parametrize(("lines", "words"), [
    ("", "is empty"), ("{", "line 1, is not JSON"), ("[]", "line 1, has no id"),
    ('{"id": "a"}', "(a), has neither"), ('{"id": "a", "text": " "}', "(a), has neither"),
    ('{"id": "a", "messages": [{"role": "user", "content": "x"}]}', "(a), has neither"),
    ('{"id": "a", "messages": [{"role": "king", "content": "x"}]}', "(a), has neither"),
    ('{"id": "a", "text": "x"}\n{"id": "b", "messages": [{"role": "assistant", "content": "x"}]}', "mixes documents"),
])  # fmt: skip
def test_a_text_that_is_not_a_domain_is_refused_by_its_line(tmp_path: Path, lines: str, words: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "mine.jsonl").write_text(lines)
    with pytest.raises(StageFailure, match=r"mine\.jsonl") as caught:
        read_domain_texts(tmp_path, DomainSettings(texts="texts"))
    assert words in str(caught.value) and caught.value.exit_code == ExitCode.BAD_REQUEST


def test_a_domain_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    line = json.dumps({"id": "a", "text": "one\u2028line"}, ensure_ascii=False)
    (tmp_path / "texts" / "mine.jsonl").write_text(line)
    assert read_domain_texts(tmp_path, DomainSettings(texts="texts"))[0].documents[0].text == "one\u2028line"
    with pytest.raises(StageFailure, match="no domain 'theirs'; there are: mine"):
        read_domain_texts(tmp_path, DomainSettings(texts="texts", names=("theirs",)))


# ---- how much is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "budget", "longest", "read"), [
    ([100, 100], 4000, 2048, [100, 100]),  # all there is
    ([5000, 100], 4000, 2048, [2048, 100]),  # no more than the context
    ([1000, 50, 1000], 850, 2048, [400, 50, 400]),  # as much of each as of the others
    ([1000] * 100, 64, 2048, [32, 32, *[0] * 98]),  # but at least a piece
])  # fmt: skip
def test_a_budget_is_spread_over_documents(lengths: list[int], budget: int, longest: int, read: list[int]) -> None:
    assert domain_reading_lengths(lengths, budget, longest) == read


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.integers(64, 5000), st.integers(64, 2048))
def test_never_more_is_read_than_there_is_or_was_asked(lengths: list[int], budget: int, longest: int) -> None:
    read = domain_reading_lengths(lengths, budget, longest)
    assert sum(read) <= budget
    assert all(0 <= n <= min(there, longest) for n, there in zip(read, lengths, strict=True))


def passage(kinds: Sequence[str]) -> Passage:
    return Passage(np.arange(len(kinds), dtype=np.int32), tuple(kinds), 10)


@given(st.lists(st.sampled_from(["", "", "answers"]), min_size=1, max_size=80), st.integers(1, 20), st.integers(1, 9))
def test_batches_hold_every_scored_token_once_after_what_stands_before_it(
    kinds: list[str], max_tokens: int, max_rows: int
) -> None:
    one = passage(["", *kinds])
    batches = [*passage_batches(one, max_tokens, max_rows)]
    wanted = [batch.start + int(at) + 1 for batch in batches for at in np.flatnonzero(batch.wanted)]
    assert wanted == one.targets.tolist()
    assert [b.start for b in batches] == [0, *(b.end for b in batches)][: len(batches)], "no token is left out"
    assert all(b.end - b.start <= max_tokens and b.wanted.sum() <= max_rows for b in batches)
    assert one.n_read == (batches[-1].end if batches else 0)


# ---- the numbers -------------------------------------------------------------------------------------


def values(kld: Sequence[float]) -> TokenValues:
    found = np.array(kld)
    return TokenValues(nll=found + 2, kld=found, delta_p=found, same_top=found < 0.5)


def tokens(documents: Sequence[int], kinds: Sequence[str] | None = None) -> DomainTokens:
    n = len(documents)
    return DomainTokens(np.array(documents, np.int32), np.arange(n, dtype=np.int32), np.array(kinds or ["text"] * n))


def test_documents_are_clusters_and_unequal_ones_count_by_their_length() -> None:
    """Nine documents of 1 to 9 tokens: residual sums r, error √(Σ r² k / (k - 1)) / n, df (Σ w)² / Σ w² - 1."""
    lengths = range(1, 10)
    documents = [at for at, n in enumerate(lengths) for _ in range(n)]
    kld = [0.01 * (at % 3) + 0.001 * i for i, at in enumerate(documents)]
    found = domain_numbers(values(kld), np.array(kld), tokens(documents))["mean_kld"]
    mean, n = sum(kld) / 45, 45
    sums = [sum(x - mean for x, at in zip(kld, documents, strict=True) if at == which) for which in range(9)]
    assert found.value == pytest.approx(mean)
    centred = sum((r - sum(sums) / 9) ** 2 for r in sums)
    assert found.stderr == pytest.approx((9 / 8 * centred) ** 0.5 / n)
    assert found.df == pytest.approx(45**2 / sum(w * w for w in lengths) - 1)
    assert np.mean(found.clusters) == pytest.approx(mean)


def test_few_documents_are_cut_into_eight_clusters_or_more() -> None:
    assert document_cluster_ends([40, 80]).tolist() == [10, 20, 30, 40, 60, 80, 100, 120]
    assert document_cluster_ends([0, 3, 0]).tolist() == [1, 2, 3]
    assert document_cluster_ends([5] * 20).tolist() == [*range(5, 101, 5)]
    assert document_cluster_ends([]).tolist() == []


def test_the_error_agrees_with_a_bootstrap_of_blocks() -> None:
    """Neighbouring tokens that share two thirds of their noise, in 400 documents of 100 tokens: blocks of 50 tokens
    drawn with replacement spread as the clusters say, and nearly twice as much as independent tokens would.
    """
    random = np.random.default_rng(5)
    noise = random.standard_exponential((400, 100))
    for at in range(1, 100):
        noise[:, at] = 0.66 * noise[:, at - 1] + 0.34 * noise[:, at]
    kld = noise.ravel()
    found = clustered_mean_estimate(kld, document_cluster_ends([100] * 400))
    blocks = kld.reshape(-1, 50).mean(axis=1)
    drawn = blocks[random.integers(0, len(blocks), (2000, len(blocks)))].mean(axis=1)
    assert found.stderr == pytest.approx(drawn.std(), rel=0.15)
    assert found.stderr > 1.6 * kld.std() / np.sqrt(len(kld))


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    random, inside, n = np.random.default_rng(7), 0, 400
    for _ in range(n):
        lengths = random.integers(50, 400, 12)
        shared = np.repeat(0.3 * random.standard_normal(12), lengths)
        kld = 1 + shared + 0.5 * random.standard_normal(lengths.sum())
        interval = estimate_interval(clustered_mean_estimate(kld, document_cluster_ends(lengths.tolist())))
        inside += interval.low <= 1 <= interval.high
    assert inside / n >= 0.92, "95 %, less what twelve documents of unequal length and 400 draws allow"


def test_parts_are_told_in_the_order_of_reading_and_only_if_they_say_something() -> None:
    kinds = ["tool calls"] * 20 + ["answers"] * 30 + ["few"] * 3
    found = domain_parts(values([0.1] * 20 + [0.7] * 33), tokens([0] * 53, kinds), np.array(kinds))
    assert [(part.name, part.n_tokens) for part in found] == [("tool calls", 20), ("answers", 30)]
    assert [round(part.mean_kld.value, 6) for part in found] == [0.1, 0.7]
    assert [part.top1_agreement.value for part in found] == [1.0, 0.0]
    assert found[1].kld_p99 == pytest.approx(0.7)


def test_positions_are_named_by_their_bucket() -> None:
    positions = np.array([0, 511, 512, 2047, 2048, 8191], np.int32)
    assert position_names(positions, (512, 2048, 8192)).tolist() == [
        "0-512", "0-512", "512-2048", "512-2048", "2048-8192", "2048-8192",
    ]  # fmt: skip
    assert position_names(positions[:2], (512,)).tolist() == ["0-512", "0-512"]


@pytest.mark.parametrize("positions", [(), (512, 512), (2048, 512), (8,)])
def test_ends_of_buckets_rise(positions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="positions"):
        DomainSettings(positions=positions)
