"""The noise of the packing, measured on a real file."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from eval.llama.layout_noise import layout_noise_of_task
from eval.llama.lm import LlamaLM
from quantyard.plan.suites import SUITES_DIR


def _samples(lm: LlamaLM, n: int) -> list[dict[str, Any]]:
    """The first smoke questions as lm-eval leaves them, scored together."""
    lines = [json.loads(line) for line in (SUITES_DIR / "smoke" / "questions.jsonl").read_text().splitlines()[:n]]
    asked = [[(f"Question: {q['question']}\nAnswer:", f" {choice}") for choice in q["choices"]] for q in lines]
    flat = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(p for pairs in asked for p in pairs)]
    scores = iter(lm.loglikelihood(flat))
    found = [{"arguments": pairs, "resps": [[next(scores)] for _ in pairs], "filter": "none"} for pairs in asked]
    picks = [max(range(len(s["resps"])), key=lambda at, s=s: s["resps"][at][0][0]) for s in found]
    return [s | {"acc": float(pick == q["answer"])} for s, pick, q in zip(found, picks, lines, strict=True)]


def test_a_score_in_another_packing_differs_by_little_and_costs_nothing_of_the_count(demo_gguf: Any) -> None:
    lm = LlamaLM(demo_gguf("Q4_K_M"), threads=1)
    samples = _samples(lm, 16)
    before = lm.counts()
    found = layout_noise_of_task(lm, samples)
    assert found is not None and (found.n_questions, found.n_requests) == (8, 32)
    assert 0 < found.sd_nats < 0.5 and 0 <= found.flips <= 8
    assert found.accuracy is not None and found.accuracy.n_questions == 16
    assert 0 < found.accuracy.expected_flips < 4 and 0 < found.accuracy.layout_sd < found.accuracy.sample_stderr
    assert lm.counts() == before
    assert layout_noise_of_task(lm, samples[:1]) is None, "half of one question is none"


def test_a_score_is_the_same_bits_again_and_with_another_number_of_threads(demo_gguf: Any) -> None:
    one, again, two = (
        [sample["resps"] for sample in _samples(LlamaLM(demo_gguf("Q4_K_M"), threads=threads), 4)]
        for threads in (1, 1, 2)
    )
    assert one == again == two
