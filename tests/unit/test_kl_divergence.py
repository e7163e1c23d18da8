"""The numbers of divergence, held against their definitions in float64; and how a text is cut for them."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eval.analysis import kl_divergence
from eval.analysis.chunks import OUR_PROSE, divergence_text_chunks, read_divergence_text
from eval.analysis.kl_divergence import (
    DivergenceRows,
    TokenValues,
    chunk_cluster_ends,
    chunk_segments,
    cluster_means,
    divergence_comparison,
    mean_estimate,
    perplexity_estimate,
    perplexity_value,
)
from quantyard.metrics.intervals import estimate_interval, interval_difference
from quantyard.paths import REPO_DIR
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.runner import StageFailure

N_VOCAB = 50
Rows = npt.NDArray[np.float32]


def rows_of(baseline: Rows, *models: Rows, targets: Sequence[int] | None = None, at_once: int = 7) -> DivergenceRows:
    """Everything read, some rows at a time as decoding brings them."""
    n_rows, n_vocab = baseline.shape
    right = np.asarray(targets if targets is not None else [i % n_vocab for i in range(n_rows)], np.int32)
    rows = DivergenceRows(n_vocab, len(models))
    for start in range(0, n_rows, at_once):
        at = slice(start, start + at_once)
        rows.add(baseline[at], [model[at] for model in models], right[at])
    return rows


def logits(seed: int, n_rows: int = 40, spread: float = 4.0, n_vocab: int = N_VOCAB) -> Rows:
    return (np.random.default_rng(seed).standard_normal((n_rows, n_vocab)) * spread).astype(np.float32)


def near(x: Rows, seed: int, noise: float) -> Rows:
    return (x + np.random.default_rng(seed).standard_normal(x.shape) * noise).astype(np.float32)


def log_softmax(x: Rows) -> npt.NDArray[np.float64]:
    exact = x.astype(np.float64)
    return exact - np.logaddexp.reduce(exact, axis=1, keepdims=True)


def test_every_value_is_that_of_its_definition() -> None:
    x, y = logits(1), near(logits(1), 2, 0.5)
    log_p, log_q = log_softmax(x), log_softmax(y)
    targets = np.arange(40) % N_VOCAB
    (values,) = rows_of(x, y).models()
    right_p, right_q = (log[np.arange(40), targets] for log in (log_p, log_q))
    np.testing.assert_allclose(values.nll, -right_q, atol=2e-6)
    np.testing.assert_allclose(values.kld, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(values.delta_p, np.exp(right_q) - np.exp(right_p), atol=1e-6)
    assert (values.same_top == (x.argmax(axis=1) == y.argmax(axis=1))).all()
    assert 0 < values.same_top.mean() < 1


@pytest.mark.commands
@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3])
def test_the_divergence_of_a_very_good_quant_is_not_lost_in_rounding(noise: float) -> None:
    x = logits(3, n_rows=20, n_vocab=50_000) + np.float32(15)
    y = near(x, 4, noise)
    log_p, log_q = log_softmax(x), log_softmax(y)
    exact = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    assert rows_of(x, y).models()[0].kld.mean() == pytest.approx(exact, rel=0.02)


def test_a_model_does_not_diverge_from_itself() -> None:
    x = logits(5)
    rows = rows_of(x, x)
    found = divergence_comparison(rows.models()[0], rows.baseline_nll(), 1)
    assert found["mean_kld"].value == 0 and found["kld_percentiles"]["100"] == 0
    assert found["top1_agreement"].value == 1 and found["top1_agreement"].stderr == 0
    assert found["ln_perplexity_ratio"].value == 0 and found["ln_perplexity_ratio"].stderr == 0
    assert found["rms_delta_p"].value == 0 and found["rms_delta_p"].stderr == 0


def test_several_models_in_one_pass_have_the_values_that_each_has_alone() -> None:
    x = logits(6)
    others = [near(x, 7, 0.1), near(x, 8, 1.0), logits(9)]
    together = rows_of(x, *others).models()
    for other, values in zip(others, together, strict=True):
        (alone,) = rows_of(x, other).models()
        assert (alone.kld == values.kld).all() and (alone.nll == values.nll).all()
    assert together[0].kld.mean() < together[1].kld.mean() < together[2].kld.mean()


def test_without_other_models_the_baseline_is_read_alone() -> None:
    rows = rows_of(logits(10))
    assert rows.models() == [] and len(rows.baseline_nll()) == 40


finite = arrays.arrays(np.float32, (6, 5), elements=st.floats(-60, 60, width=32))


@given(finite, finite, st.integers(1, 6))
def test_a_divergence_is_never_negative_and_does_not_depend_on_how_rows_come(x: Rows, y: Rows, at_once: int) -> None:
    (values,) = rows_of(x, y, at_once=at_once).models()
    (whole,) = rows_of(x, y, at_once=6).models()
    assert (values.kld >= 0).all()
    np.testing.assert_allclose(values.kld, whole.kld, rtol=1e-5, atol=1e-6)
    assert (np.abs(values.delta_p) <= 1).all()


@given(finite, finite, st.floats(-30, 30))
def test_adding_a_number_to_all_logits_of_a_row_changes_nothing(x: Rows, y: Rows, shift: float) -> None:
    (values,) = rows_of(x, y).models()
    (shifted,) = rows_of(x, y + np.float32(shift)).models()
    np.testing.assert_allclose(shifted.kld, values.kld, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shifted.nll, values.nll, rtol=1e-4, atol=1e-4)


def test_a_block_smaller_than_the_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = logits(11), near(logits(11), 12, 0.3)
    (whole,) = rows_of(x, y, at_once=40).models()
    monkeypatch.setattr(kl_divergence, "_BLOCK_FLOATS", 1)  # one row each
    (small,) = rows_of(x, y, at_once=40).models()
    np.testing.assert_allclose(small.kld, whole.kld, rtol=1e-6)


def test_tokens_that_both_rule_out_count_as_nothing() -> None:
    x, y = logits(13), near(logits(13), 14, 0.3)
    x[:, 40:] = y[:, 40:] = -np.inf
    targets = [i % 40 for i in range(40)]
    (values,) = rows_of(x, y, targets=targets).models()
    (without,) = rows_of(x[:, :40], y[:, :40], targets=targets).models()
    np.testing.assert_allclose(values.kld, without.kld, rtol=1e-5, atol=1e-7)


def test_an_infinite_divergence_is_refused() -> None:
    x, y = logits(15), logits(15)
    y[17, 3] = -np.inf
    with pytest.raises(StageFailure, match="divergence is infinite"):
        rows_of(x, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("whose", ["baseline", "model"])
def test_a_logit_that_is_no_number_is_refused(bad: float, whose: str) -> None:
    x, y = logits(16), logits(17)
    (x if whose == "baseline" else y)[23, 7] = bad
    with pytest.raises(StageFailure, match="not finite") as failure:
        rows_of(x, y)
    assert failure.value.error.kind == "nan-logits"


# ---- statistics --------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() -> None:
    assert perplexity_value(rows_of(np.zeros((40, N_VOCAB), np.float32)).baseline_nll()) == pytest.approx(N_VOCAB)


def test_errors_are_those_of_the_texts_clusters() -> None:
    """Sums of residuals of each cluster, written out; the values are those of llama-perplexity."""
    x, y = logits(18, n_rows=300), near(logits(18, n_rows=300), 19, 0.5)
    rows = rows_of(x, y)
    (values,), base = rows.models(), rows.baseline_nll()
    found, n, n_clusters = divergence_comparison(values, base, 10), len(base), 10

    def uncertainty(v: npt.NDArray[np.float64]) -> float:
        totals = (v - v.mean()).reshape(n_clusters, -1).sum(axis=1)
        return math.sqrt(n_clusters / (n_clusters - 1) * (totals**2).sum()) / n

    squares = values.delta_p**2
    ppl = perplexity_estimate(values.nll, 10)
    assert ppl.value == pytest.approx(math.exp(values.nll.mean()))
    assert ppl.stderr == pytest.approx(ppl.value * uncertainty(values.nll))
    assert found["ln_perplexity_ratio"].value == pytest.approx(math.log(ppl.value / found["baseline_perplexity"].value))
    assert found["ln_perplexity_ratio"].stderr == pytest.approx(uncertainty(values.nll - base))
    assert found["mean_kld"].stderr == pytest.approx(uncertainty(values.kld))
    assert found["mean_kld"].clusters == pytest.approx(values.kld.reshape(10, -1).mean(axis=1))
    assert found["top1_agreement"].stderr == pytest.approx(uncertainty(values.same_top.astype(float)))
    assert found["mean_delta_p"].stderr == pytest.approx(uncertainty(values.delta_p))
    assert found["rms_delta_p"].value == pytest.approx(math.sqrt(squares.mean()))
    assert found["rms_delta_p"].stderr == pytest.approx(0.5 / math.sqrt(squares.mean()) * uncertainty(squares))
    assert {found[name].df for name in ("mean_kld", "rms_delta_p", "baseline_perplexity")} == {9}


@pytest.mark.parametrize(
    ("n_tokens", "n_chunks", "clusters"), [(2048, 8, 8), (256, 1, 8), (768, 3, 9), (25_600, 100, 64), (5, 1, 5)]
)
def test_a_short_text_has_eight_clusters_a_long_one_at_most_64(n_tokens: int, n_chunks: int, clusters: int) -> None:
    values = np.random.default_rng(1).random(n_tokens)
    of = cluster_means(values, chunk_cluster_ends(len(values), n_chunks))
    assert len(of) == clusters
    assert of.mean() == pytest.approx(values.mean())


def _chunked_klds(rng: np.random.Generator, n_chunks: int) -> npt.NDArray[np.float64]:
    """Divergences as texts have them: skewed, alike within a passage and from token to token; their mean is 1."""
    passage = np.repeat(rng.normal(0, 0.25, n_chunks), 256)
    noise = rng.normal(0, 1, n_chunks * 256)
    run = np.empty_like(noise)
    run[0] = noise[0]
    for i in range(1, len(noise)):
        run[i] = 0.4 * run[i - 1] + math.sqrt(1 - 0.16) * noise[i]
    return np.exp(passage + run - (0.25**2 + 1) / 2)


@pytest.mark.parametrize("n_chunks", [8, 24, 100])
@pytest.mark.commands
def test_the_interval_of_a_mean_divergence_covers_the_truth_95_times_in_100(n_chunks: int) -> None:
    rng, naive, clustered = np.random.default_rng(n_chunks), [], []
    for _ in range(200):
        values = _chunked_klds(rng, n_chunks)
        found = estimate_interval(mean_estimate(values, n_chunks))
        half = 1.96 * values.std() / math.sqrt(len(values))
        clustered.append(found.low <= 1 <= found.high)
        naive.append(abs(values.mean() - 1) <= half)
    assert np.mean(naive) < 0.85  # tokens taken for independent
    assert 0.91 <= np.mean(clustered) <= 0.99


def test_the_clustered_error_is_that_of_the_block_bootstrap() -> None:
    rng = np.random.default_rng(3)
    values = _chunked_klds(rng, 60)
    blocks = values.reshape(60, -1).mean(axis=1)
    means = blocks[rng.integers(0, 60, (4000, 60))].mean(axis=1)
    assert mean_estimate(values, 60).stderr == pytest.approx(means.std(), rel=0.05)


def test_two_files_are_compared_cluster_by_cluster() -> None:
    """Both diverge where the text is hard: the difference is known far better than either value."""
    rng = np.random.default_rng(4)
    one = _chunked_klds(rng, 24)
    other = 1.05 * one + rng.normal(0, 0.1, len(one))
    a, b = (mean_estimate(values, 24, keep_clusters=True) for values in (other, one))
    apart = [mean_estimate(values, 24) for values in (other, one)]
    assert 0 < interval_difference(a, b).low < interval_difference(a, b).value < 0.1
    assert interval_difference(*apart).low < 0


def test_percentiles_are_named_as_the_contract_has_them() -> None:
    n = 1001
    values = TokenValues(np.ones(n), np.arange(n) / 1000, np.zeros(n), np.ones(n, np.bool_))
    found = divergence_comparison(values, np.ones(n), 1)["kld_percentiles"]
    assert found == pytest.approx({"50": 0.5, "90": 0.9, "95": 0.95, "99": 0.99, "99.9": 0.999, "100": 1.0})


def test_a_comparison_has_every_field_of_the_contract_that_needs_a_baseline() -> None:
    rows = rows_of(logits(20), logits(21))
    optional = {name for name, field in Divergence.model_fields.items() if not field.is_required()}
    optional -= {"duration_s", "rolling_perplexity", "parts", "parts_missing", "backend"}  # of the whole stage
    assert set(divergence_comparison(rows.models()[0], rows.baseline_nll(), 1)) == optional


def test_a_perplexity_beyond_all_numbers_is_still_a_number() -> None:
    assert math.isfinite(perplexity_value(np.array([900.0, 1000.0])))


def test_an_estimate_of_truths_is_their_share() -> None:
    assert mean_estimate(np.array([True, True, False, True]), 1).value == 0.75


# ---- the text ----------------------------------------------------------------------------------------


@given(st.integers(64, 3000), st.integers(1, 600), st.integers(1, 300))
def test_segments_read_each_token_once_and_score_the_second_half(n_ctx: int, max_tokens: int, max_rows: int) -> None:
    parts = list(chunk_segments(n_ctx, max_tokens, max_rows))
    assert [position for part in parts for position in range(part.start, part.end)] == list(range(n_ctx - 1))
    scored = [row for part in parts for row in range(part.first, part.end)]
    assert scored == list(range(n_ctx // 2, n_ctx - 1))
    assert all(0 < part.end - part.start <= max_tokens and part.end - part.first <= max_rows for part in parts)


def test_a_chunk_of_llama_perplexitys_size_is_decoded_at_once() -> None:
    assert len(list(chunk_segments(512, 512, 256))) == 1


def test_chunks_begin_with_bos_and_leave_the_rest_of_the_text_out() -> None:
    cut = divergence_text_chunks(range(100, 350), 64, 0, bos=1)
    assert cut.shape == (3, 64) and cut[:, 0].tolist() == [1, 1, 1] and cut[1, 1:].tolist() == list(range(165, 228))
    assert divergence_text_chunks(range(100, 350), 64, 0, bos=None)[1, 0] == 164
    assert (
        len(divergence_text_chunks(range(250), 64, 2, bos=None)) == 2
        and len(divergence_text_chunks(range(250), 64, 9, bos=None)) == 3
    )


def test_a_text_too_short_for_one_chunk_says_how_many_tokens_it_has_and_needs() -> None:
    with pytest.raises(StageFailure, match="has 63 tokens, and one chunk needs 64") as failure:
        divergence_text_chunks(range(63), 64, 0, bos=None)
    assert failure.value.exit_code == 2


def test_our_prose_is_read_where_no_text_is_given() -> None:
    text = read_divergence_text(Path("/nowhere"), None)
    assert text.name == OUR_PROSE and len(text.documents) > 10 and text.whole == "\n\n".join(text.documents)
    assert len(text.whole.split()) > 8000


def test_form_feeds_part_the_documents_of_a_users_text_and_stay_in_the_whole(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes("One.\r\n\fTwo: naïve.\n\f \f".encode())
    text = read_divergence_text(tmp_path, "text.txt")
    assert text.documents == ("One.\r\n", "Two: naïve.\n") and text.whole == "One.\r\n\fTwo: naïve.\n\f \f"


def test_the_last_newline_is_left_out_as_llama_perplexity_does(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"One.\n\n")
    assert read_divergence_text(tmp_path, "text.txt").whole == "One.\n"


@pytest.mark.parametrize(("data", "message"), [
    (b"", "is empty"), (b" \n\f\n", "is empty"), (b"caf\xe9", "not UTF-8: byte 3 is 0xe9"), (None, "No such file"),
])
def test_a_text_that_cannot_be_read_says_why(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "text.txt").write_bytes(data)
    with pytest.raises(StageFailure, match=message) as failure:
        read_divergence_text(tmp_path, "text.txt")
    assert failure.value.exit_code == 2 and failure.value.error.hint


def test_the_numbers_need_no_llama_cpp() -> None:
    code = "import sys, eval.analysis.kl_divergence, eval.analysis.chunks; print([n in sys.modules for n in {heavy}])"
    code = code.format(heavy=("llama_cpp", "lm_eval", "scipy"))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_DIR, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False, False]"
