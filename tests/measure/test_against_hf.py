"""Against lm-eval's reference: its `hf` model, the original weights in torch float32; and ours, an F32 GGUF."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from eval.llama.lm import LlamaLM
from quantyard.paths import REPO_DIR
from quantyard.workflows.demo import DEMO_NAME
from tests.hostile.sampling import rounds

SMOKE = REPO_DIR / "eval" / "suites" / "smoke"
N_QUESTIONS, N_TEXTS, MAX_LENGTH = rounds(sample=50, whole=100), rounds(sample=2, whole=4), 512


@pytest.fixture(scope="module")
def ours(demo_f32: Path) -> Iterator[LlamaLM]:
    lm = LlamaLM(demo_f32, max_length=MAX_LENGTH)
    yield lm
    lm.model.close()


@pytest.fixture(scope="module")
def hf() -> Any:
    torch = pytest.importorskip("torch")
    from lm_eval.models.huggingface import HFLM

    folder = REPO_DIR / "artifacts" / "demo" / DEMO_NAME
    if not folder.exists():
        pytest.skip(f"no {folder}: run `make demo`")
    torch.manual_seed(0)
    return HFLM(pretrained=str(folder), dtype="float32", batch_size=8, device="cpu", max_length=MAX_LENGTH)


def ask(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SMOKE / name).read_text().splitlines()]


def test_multiple_choice_answers_are_those_of_hf(ours: LlamaLM, hf: Any) -> None:
    questions = read("questions.jsonl")[:N_QUESTIONS]
    pairs = [(f"Question: {q['question']}\nAnswer:", f" {choice}") for q in questions for choice in q["choices"]]
    mine = ours.loglikelihood(ask("loglikelihood", pairs))
    theirs = hf.loglikelihood(ask("loglikelihood", pairs), disable_tqdm=True)
    n_tokens = [len(ours._encode_pair(*pair)[1]) for pair in pairs]
    differences = [abs(a - b) / n for (a, _), (b, _), n in zip(mine, theirs, n_tokens, strict=True)]
    assert np.mean(differences) <= 0.005
    chosen = [np.array([score for score, _ in side]).reshape(-1, 4).argmax(axis=1) for side in (mine, theirs)]
    assert (chosen[0] != chosen[1]).sum() <= 1
    assert np.mean([a == b for (_, a), (_, b) in zip(mine, theirs, strict=True)]) >= 0.99  # is_greedy


def test_rolling_scores_are_those_of_hf_in_one_window_and_in_several(ours: LlamaLM, hf: Any) -> None:
    texts = [document["text"] for document in read("prose.jsonl")[:N_TEXTS]]
    texts += [text[:800] for text in texts]
    arguments = [(text,) for text in texts]
    mine = ours.loglikelihood_rolling(ask("loglikelihood_rolling", arguments))
    theirs = hf.loglikelihood_rolling(ask("loglikelihood_rolling", arguments), disable_tqdm=True)
    lengths = [len(ours.tok_encode(text)) for text in texts]
    assert max(lengths) > MAX_LENGTH > min(lengths)
    assert np.mean([abs(a - b) / n for a, b, n in zip(mine, theirs, lengths, strict=True)]) <= 0.005


def test_greedy_texts_are_those_of_hf(ours: LlamaLM, hf: Any) -> None:
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    prompts = [row["prompt"] for row in read("completions.jsonl")[:16]]
    asked = [(prompt, options) for prompt in prompts]
    theirs = hf.generate_until(ask("generate_until", copy.deepcopy(asked)), disable_tqdm=True)
    assert ours.generate_until(ask("generate_until", asked)) == theirs
