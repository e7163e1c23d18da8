#!/usr/bin/env python3
"""Measures one file with so many layers on the GPU, in this process alone: what it computes, and how fast.

The reference runs in a process that sees no GPU (CUDA_VISIBLE_DEVICES is empty): even without layers there, llama.cpp
computes large products on a GPU that it sees.

Usage:  measure.py MODEL.gguf OUT.npz [--layers -1] [--threads 0]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from eval.llama.backend import backend_name
from eval.llama.context import Context, ContextSettings
from eval.llama.generator import Generator, Prompt
from eval.llama.model import GgufModel
from eval.llama.prefix_tree import Request
from eval.llama.scorer import Scorer
from eval.speed import measure_speed
from quantyard.protocol.evaluation import SpeedSettings

QUESTIONS, CHOICES, SHARED, OWN = 24, 4, 96, 12  # like a task of multiple choice
CHUNK: Final = 512  # tokens of the divergence; the second half counts, as in llama-perplexity
GREEDY_PROMPTS, GREEDY_TOKENS = 4, 48
SPEED: Final = SpeedSettings(prompt_tokens=512, generated_tokens=64, repeats=3)


def questions_to_score(n_vocab: int) -> list[Request]:
    """Questions of random tokens, each with several endings."""
    random, found = np.random.default_rng(1), list[Request]()
    for _ in range(QUESTIONS):
        shared = random.integers(0, n_vocab, SHARED).tolist()
        for _ in range(CHOICES):
            own = random.integers(0, n_vocab, OWN).tolist()
            found.append(Request([*shared, *own[:-1]], own))
    return found


def measure_gpu_file(path: Path, layers: int, threads: int) -> dict[str, npt.NDArray[np.generic]]:
    """What is compared: log-likelihoods, logits of a chunk, greedy tokens, and the times of all of it."""
    with GgufModel.load(path, layers) as model:
        scorer, asked = Scorer(model, threads), questions_to_score(model.n_vocab)
        scorer.score(asked[:CHOICES])  # warm up
        started = time.perf_counter()
        scores = scorer.score(asked)
        evaluation_s = time.perf_counter() - started
        tokens = np.random.default_rng(2).integers(0, model.n_vocab, CHUNK).astype(np.int32)
        with Context(model, ContextSettings(CHUNK, threads=threads)) as context:
            logits = np.concatenate(context.decode_one(tokens, n_rows=CHUNK // 2))
        prompts = [
            Prompt(np.random.default_rng(3 + n).integers(0, model.n_vocab, 16).tolist(), GREEDY_TOKENS)
            for n in range(GREEDY_PROMPTS)
        ]
        greedy = [answer.tokens for answer in Generator(model, threads).generate(prompts)]
        n_ctx = SPEED.prompt_tokens + SPEED.generated_tokens
        with Context(model, ContextSettings(n_ctx, threads=threads)) as context:
            times = measure_speed(context, SPEED, lambda _done: None)
        speeds = times.speeds(SPEED)
        backend = backend_name(layers)
    padded = np.full((GREEDY_PROMPTS, GREEDY_TOKENS), -1, np.int32)
    for row, text in zip(padded, greedy, strict=True):
        row[: len(text)] = text
    return {
        "loglikelihoods": np.array([total for total, _ in scores.sums()]), "logits": logits,
        "targets": np.append(tokens[CHUNK // 2 + 1 :], 0).astype(np.int32), "greedy": padded,
        "evaluation": np.array(len(asked) / evaluation_s), "prompt": np.array(speeds["prompt_tokens_per_s"]),
        "generation": np.array(speeds["generated_tokens_per_s"]), "backend": np.array(backend),
    }  # fmt: skip


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description="Measures one file on the GPU, or without one.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=-1)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    np.savez(args.out, **measure_gpu_file(args.model, args.layers, args.threads))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
