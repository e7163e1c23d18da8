"""Choosing the next token, and finding the end of a text: no model needed."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.llama.sampling import GeneratedText, Sampler, Sampling, largest_logits, sampling_candidates
from quantyard.protocol.runner import StageFailure

Row = npt.NDArray[np.float32]
# Few distinct values, so that ties are common.
rows = st.lists(st.sampled_from([-30.0, -2.0, -1.0, 0.0, 0.5, 1.0, 3.0]) | st.floats(-20, 20, width=32), min_size=1)
logits = rows.map(lambda values: np.array(values, np.float32))
samplings = st.builds(
    Sampling, temperature=st.floats(0.05, 5), top_k=st.integers(0, 12), top_p=st.floats(0, 1), min_p=st.floats(0, 1),
    seed=st.integers(0, 2**40),
)


def plain_softmax(row: Row, temperature: float) -> npt.NDArray[np.float64]:
    scaled = row.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


@given(logits, st.integers(0, 99))
def test_greedy_takes_the_first_of_the_largest(row: Row, number: int) -> None:
    assert Sampler(Sampling(), number).choose(row) == row.tolist().index(row.max())


@pytest.mark.commands
@given(logits, st.floats(0.05, 5), st.integers(0, 99))
def test_top_k_of_one_is_greedy(row: Row, temperature: float, seed: int) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_k=1, seed=seed), 0)
    assert sampler.choose(row) == int(row.argmax())


@given(logits, samplings)
def test_a_choice_is_a_candidate_and_the_likeliest_token_always_is_one(row: Row, sampling: Sampling) -> None:
    ids, weights = sampling_candidates(row, sampling)
    assert Sampler(sampling, 3).choose(row) in ids
    mass = plain_softmax(row, sampling.temperature)
    assert mass[ids].max() == mass.max()  # logits that differ by 1e-45 are equally likely
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(ids) > 0).all()


@given(logits, samplings)
def test_each_step_works_on_what_the_one_before_left(row: Row, sampling: Sampling) -> None:
    t, ids = sampling.temperature, np.arange(len(row))
    for step in ({"top_k": sampling.top_k}, {"top_p": sampling.top_p}, {"min_p": sampling.min_p}):
        ids = ids[sampling_candidates(row[ids], Sampling(temperature=t, **step))[0]]
    assert sampling_candidates(row, sampling)[0].tolist() == ids.tolist()


@given(logits, st.floats(0, 0.999), st.floats(0.05, 5))
def test_top_p_keeps_the_smallest_set_that_reaches_its_mass(row: Row, p: float, temperature: float) -> None:
    mass = plain_softmax(row, temperature)
    ids, _weights = sampling_candidates(row, Sampling(temperature=temperature, top_p=p))
    kept = mass[ids]
    assert kept.sum() >= p - 1e-9
    assert len(ids) == 1 or kept.sum() - kept.min() < p + 1e-9
    assert len(ids) == len(row) or kept.min() >= np.delete(mass, ids).max() - 1e-12


@given(logits, st.floats(0.001, 1), st.floats(0.05, 5))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(row: Row, p: float, temperature: float) -> None:
    mass = plain_softmax(row, temperature)
    ids, _weights = sampling_candidates(row, Sampling(temperature=temperature, min_p=p))
    assert (mass[ids] >= p * mass.max() * (1 - 1e-9)).all()
    assert (np.delete(mass, ids) <= p * mass.max() * (1 + 1e-9)).all()


@given(logits, st.integers(1, 60))
def test_largest_prefers_the_first_of_equal_values(row: Row, count: int) -> None:
    expected = np.sort(np.argsort(-row, kind="stable")[:count])
    assert largest_logits(row, count).tolist() == expected.tolist()


@pytest.mark.parametrize("sigma", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_looks_as_far_into_a_large_vocabulary_as_it_must(sigma: float, p: float) -> None:
    row = np.random.default_rng(7).normal(0, sigma, 30_000).astype(np.float32)
    ids, _weights = sampling_candidates(row, Sampling(temperature=1, top_p=p))
    order = np.argsort(-row, kind="stable")
    enough = int(np.searchsorted(np.cumsum(plain_softmax(row, 1)[order]), p)) + 1
    assert abs(len(ids) - enough) <= 1
    assert set(ids.tolist()) == set(order[: len(ids)].tolist())


@pytest.mark.commands
def test_draws_follow_the_distribution() -> None:
    row = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    sampler, n = Sampler(Sampling(temperature=1.0, seed=5), 0), 20_000
    counts = Counter(sampler.choose(row) for _ in range(n))
    for token, p in enumerate([0.1, 0.2, 0.3, 0.4]):
        assert abs(counts[token] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_a_higher_temperature_flattens_and_comes_before_top_p() -> None:
    row = np.log(np.array([0.8, 0.1, 0.1], np.float32))
    assert sampling_candidates(row, Sampling(temperature=1.0, top_p=0.75))[0].tolist() == [0]
    ids, weights = sampling_candidates(row, Sampling(temperature=2.0, top_p=0.75))
    assert ids.tolist() == [0, 1]
    assert weights[0] / weights[1] == pytest.approx(math.sqrt(8), rel=1e-5)


def test_a_token_of_no_probability_is_never_drawn() -> None:
    row = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    sampler = Sampler(Sampling(temperature=1.0), 0)
    assert {sampler.choose(row) for _ in range(200)} == {1, 3}


def test_a_tiny_temperature_is_greedy() -> None:
    row = np.array([1, 3, 2], np.float32)
    assert Sampler(Sampling(temperature=1e-300), 0).choose(row) == 1


def test_the_same_seed_and_number_draw_the_same_and_others_differ() -> None:
    row = np.zeros(1000, np.float32)

    def draws(seed: int, number: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), number)
        return [sampler.choose(row) for _ in range(8)]

    assert draws(1, 2) == draws(1, 2)
    assert len({tuple(draws(*pair)) for pair in [(1, 2), (2, 1), (1, 3), (3, 3)]}) == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0, np.nan, 1], [0, np.inf, 1], [-np.inf, -np.inf, -np.inf]])
def test_logits_that_are_not_finite_are_refused(temperature: float, bad: list[float]) -> None:
    with pytest.raises(StageFailure, match="not finite"):
        Sampler(Sampling(temperature=temperature), 0).choose(np.array(bad, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", math.inf), ("temperature", math.nan), ("top_p", 1.5), ("top_p", -0.1),
     ("min_p", 2.0), ("seed", -1)],
)
def test_a_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})


def lm_eval_cut(text: str, stop: list[str]) -> str:
    """What lm-eval's `postprocess_generated_text` does with a finished text."""
    for term in stop:
        text = text.split(term, maxsplit=1)[0] if term else text
    return text


stops = st.lists(st.text("aé€😀\n", max_size=4), max_size=3)


@given(st.text("aé€😀\n", max_size=30), stops, st.lists(st.integers(1, 5), min_size=1))
def test_a_stop_string_is_found_wherever_tokens_end(text: str, stop: list[str], sizes: list[int]) -> None:
    data, grown, ended = text.encode(), GeneratedText(stop), False
    at = number = 0
    while at < len(data) and not ended:
        size = sizes[number % len(sizes)]
        ended = grown.add(data[at : at + size])
        at, number = at + size, number + 1
    read = data[:at].decode(errors="replace")
    assert ended == any(term in read for term in stop if term)
    assert grown.cut() == lm_eval_cut(read, stop)


def test_a_stop_string_after_half_a_character_is_found() -> None:
    text = GeneratedText(["END"])
    assert not text.add("€".encode()[:2])
    assert not text.add(b"EN")
    assert text.add(b"D!")
    assert text.cut() == "\ufffd"


def test_a_special_token_named_as_a_stop_string_ends_the_text() -> None:
    text = GeneratedText(["<|im_start|>"])
    assert not text.add(b"Hi", b"")
    assert text.add(b"", b"<|im_start|>")
    assert text.cut() == "Hi"


def test_empty_stop_strings_stop_nothing() -> None:
    text = GeneratedText(["", ""])
    assert not text.add(b"Hello")
    assert text.cut() == "Hello"
