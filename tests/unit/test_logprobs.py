"""Log-softmax against the textbook, and NaN found wherever it hides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.llama.logprobs import LogSoftmax
from quantyard.protocol.runner import StageFailure


@given(st.integers(1, 40), st.integers(2, 70_000), st.integers(0, 2**31), st.floats(0.1, 300))
def test_it_is_the_textbooks_log_softmax(n_rows: int, n_vocab: int, seed: int, scale: float) -> None:
    rows = (np.random.default_rng(seed).standard_normal((min(n_rows, 600_000 // n_vocab + 1), n_vocab)) * scale).astype(
        np.float32
    )
    exact = rows.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    normalizers, likeliest = LogSoftmax(n_vocab).with_likeliest(rows)
    assert np.abs((rows - normalizers[:, None]) - exact).max() < 1e-4 * max(1.0, scale / 30)
    assert np.array_equal(likeliest, rows.argmax(axis=1))


def test_of_two_equal_logits_the_first_is_the_likeliest() -> None:
    rows = np.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]], np.float32)
    assert LogSoftmax(3).with_likeliest(rows)[1].tolist() == [1, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 1, 99])
def test_one_logit_that_is_not_finite_ends_it(value: float, row: int) -> None:
    rows = np.zeros((100, 50_000), np.float32)
    rows[row, 41_000] = value
    with np.errstate(invalid="ignore"), pytest.raises(StageFailure, match="not finite"):
        LogSoftmax(50_000).normalizers(rows)


def test_a_forbidden_token_of_minus_infinity_is_no_fault() -> None:
    rows = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert LogSoftmax(3).normalizers(rows)[0] == pytest.approx(np.log(2))
