"""Models whose memory cannot be shared: recurrent ones and those with a sliding window are found by asking them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from eval.analysis.self_check import self_check_logprobs, self_check_requests
from eval.llama.lm import LlamaLM
from tests.tiny_gguf import write_tiny

WINDOW = 16


@pytest.fixture(scope="module")
def tiny(demo_gguf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LlamaLM]:
    folder = tmp_path_factory.mktemp("tiny")

    def make(architecture: str) -> LlamaLM:
        path = folder / f"{architecture}.gguf"
        if not path.exists():
            write_tiny(demo_gguf("Q4_K_M"), path, architecture, window=WINDOW)
        return LlamaLM(path, threads=1)

    return make


@pytest.mark.parametrize(("architecture", "shares"), [("llama", True), ("gemma2", False), ("mamba", False)])
def test_sharing_is_what_the_model_says(tiny: Callable[[str], LlamaLM], architecture: str, shares: bool) -> None:
    assert tiny(architecture).model.shares_memory is shares


@pytest.mark.parametrize("architecture", ["gemma2", "mamba"])
def test_they_are_scored_one_by_one_and_right(tiny: Callable[[str], LlamaLM], architecture: str) -> None:
    lm = tiny(architecture)
    asked = self_check_requests(lm)
    longer = asked[0]
    assert len(longer.tokens) > WINDOW, "the window has to have something to forget"
    found = lm.scorer.score(asked).logprobs
    assert np.abs(found - self_check_logprobs(lm, asked, "auto")).max() < 1e-4
    assert lm.scorer.n_tokens_decoded == sum(len(tokens) for tokens in {tuple(request.tokens) for request in asked})


@pytest.mark.parametrize("architecture", ["gemma2", "mamba"])
def test_they_score_token_by_token_what_they_score_in_batches(
    tiny: Callable[[str], LlamaLM], architecture: str
) -> None:
    lm = tiny(architecture)
    asked = self_check_requests(lm)[:3]
    batches = self_check_logprobs(lm, asked, "auto")
    assert np.abs(batches - self_check_logprobs(lm, asked, "auto", one_by_one=True)).max() < 0.05


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba"])
def test_they_generate_the_same_text_alone_and_among_others(
    tiny: Callable[[str], LlamaLM], architecture: str
) -> None:
    lm = tiny(architecture)
    options = {"until": [], "max_gen_toks": 6}
    prompts = ["hello world", "hello there", "a river"]
    together = lm.generate_until([Instance("generate_until", {}, (p, dict(options)), n) for n, p in enumerate(prompts)])
    alone = [lm.generate_until([Instance("generate_until", {}, (p, dict(options)), 0)])[0] for p in prompts]
    assert together == alone
