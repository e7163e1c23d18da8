"""Models whose memory is not plain KV cells: recurrent ones, hybrids, and those with a sliding window.

They decode the same prefix tree as others, and score what one sequence alone scores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from eval.analysis.self_check import self_check_logprobs, self_check_requests
from eval.llama import branches as branches_module
from eval.llama import context as context_module
from eval.llama.generator import Generator, Prompt
from eval.llama.lm import LlamaLM
from eval.llama.prefix_tree import Request
from tests.tiny_gguf import write_tiny

WINDOW = 16
NOISE_NATS = 0.05  # of large logits of random weights in batches of other sizes; a wrong prefix moves them by several
KINDS = ["gemma2", "mamba", "lfm2", "jamba"]
STATES = ["mamba", "lfm2", "jamba"]


@pytest.fixture(scope="module")
def tiny(demo_gguf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LlamaLM]:
    folder = tmp_path_factory.mktemp("tiny")

    def make(architecture: str) -> LlamaLM:
        path = folder / f"{architecture}.gguf"
        if not path.exists():
            write_tiny(demo_gguf("Q4_K_M"), path, architecture, window=WINDOW)
        return LlamaLM(path, threads=1)

    return make


def tree_size(asked: list[Request]) -> int:
    """Nodes of the prefix tree."""
    return len({tuple(request.tokens[: n + 1]) for request in asked for n in range(len(request.tokens))})


def questions(lm: LlamaLM) -> list[Request]:
    """Few examples before all, then questions with choices of several lengths, longer than the window."""
    head = "".join(f"Question: what is {n}?\nAnswer: a number.\n" for n in range(3))
    asked = [f"{head}Question: {text}\nAnswer:" for text in ("who", "who is", "what", "where is the river", "why")]
    return [lm.request(text, choice) for text in asked for choice in (" a", " a river", " the old bridge", " no")]


@pytest.mark.parametrize(
    ("architecture", "states", "window"),
    [("llama", False, False), ("gemma2", False, True), ("mamba", True, False), ("lfm2", True, True),
     ("jamba", True, False)],
)  # fmt: skip
def test_the_memory_is_what_the_model_says(
    tiny: Callable[[str], LlamaLM], architecture: str, *, states: bool, window: bool
) -> None:
    model = tiny(architecture).model
    assert (model.has_states, model.has_window) == (states, window)


@pytest.mark.parametrize("architecture", KINDS)
def test_they_decode_the_tree_and_score_what_is_right(tiny: Callable[[str], LlamaLM], architecture: str) -> None:
    lm = tiny(architecture)
    asked = self_check_requests(lm) + questions(lm)
    assert max(len(request.tokens) for request in asked) > 2 * WINDOW, "the window has to have something to forget"
    found = lm.scorer.score(asked).logprobs
    assert np.abs(found - self_check_logprobs(lm, asked, "auto")).max() < NOISE_NATS
    assert lm.scorer.n_tokens_decoded == tree_size(asked)


@pytest.mark.parametrize("architecture", STATES)
@pytest.mark.parametrize("n_states", [2, 3, 5])
def test_few_states_cost_tokens_and_change_no_score(
    tiny: Callable[[str], LlamaLM], architecture: str, n_states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny(architecture)
    asked = questions(lm)
    right = self_check_logprobs(lm, asked, "auto")
    monkeypatch.setattr(context_module, "_MOST_STATES", n_states)
    assert np.abs(lm.scorer.score(asked).logprobs - right).max() < NOISE_NATS
    assert lm.scorer.n_tokens_decoded < 0.7 * sum(len(tokens) for tokens in {tuple(r.tokens) for r in asked})


def test_a_tree_of_many_branches_gives_up_states_and_keeps_its_scores(
    tiny: Callable[[str], LlamaLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, random = tiny("mamba"), np.random.default_rng(3)
    drawn = [random.integers(1, 4, random.integers(2, 40)).tolist() for _ in range(60)]
    asked = [Request(tokens, tokens[-1:]) for tokens in drawn]
    right = self_check_logprobs(lm, asked, "auto")
    monkeypatch.setattr(context_module, "_MOST_STATES", 3)
    monkeypatch.setattr(branches_module, "BATCH_TOKENS", 16)
    assert np.abs(lm.scorer.score(asked).logprobs - right).max() < NOISE_NATS
    assert lm.scorer.n_tokens_decoded <= 1.3 * tree_size(asked)


@pytest.mark.parametrize("architecture", KINDS)
def test_they_score_token_by_token_what_they_score_in_batches(
    tiny: Callable[[str], LlamaLM], architecture: str
) -> None:
    lm = tiny(architecture)
    asked = self_check_requests(lm)[:3]
    batches = self_check_logprobs(lm, asked, "auto")
    assert np.abs(batches - self_check_logprobs(lm, asked, "auto", one_by_one=True)).max() < NOISE_NATS


@pytest.mark.parametrize("architecture", ["llama", *KINDS])
def test_they_generate_the_same_text_alone_and_among_others(
    tiny: Callable[[str], LlamaLM], architecture: str
) -> None:
    lm = tiny(architecture)
    options = {"until": [], "max_gen_toks": 6}
    prompts = ["hello world", "hello there", "a river"]
    together = lm.generate_until([Instance("generate_until", {}, (p, dict(options)), n) for n, p in enumerate(prompts)])
    alone = [lm.generate_until([Instance("generate_until", {}, (p, dict(options)), 0)])[0] for p in prompts]
    assert together == alone


@pytest.mark.parametrize("architecture", STATES)
def test_the_beginning_of_all_prompts_is_decoded_once(tiny: Callable[[str], LlamaLM], architecture: str) -> None:
    model = tiny(architecture).model
    head = model.tokenize("Question: what is a number? Answer: it is a word. " * 3, add_special=True)
    prompts = [Prompt([*head, *model.tokenize(text, add_special=False)], 3) for text in ("a", "river", "of old", "x y")]
    generator = Generator(model, 1)
    together = generator.generate(prompts)
    assert generator.n_tokens_decoded <= len(head) + sum(len(p.tokens) - len(head) + 2 for p in prompts)
    assert together == [Generator(model, 1).generate([prompt])[0] for prompt in prompts]
