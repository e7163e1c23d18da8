"""The stage `speed`: prompt speed, generation speed and peak memory of one GGUF on this machine.

Measured as in llama-bench (tools/llama-bench): with random tokens, because their values do not matter; the prompt in
batches with the logits of its last token only; generation one token at a time from an empty KV cache. Both are warmed
up first. Of an encoder-decoder the encoder reads the prompt, and the decoder writes the generated tokens in answer to
it. The stage runs in a process of its own, so its peak memory is the model's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import llama_cpp
import numpy as np

from eval.llama.context import Context, ContextSettings, Ints
from eval.llama.model import GgufModel
from quantyard.hardware.machine import peak_memory_bytes
from quantyard.protocol.evaluation import DEFAULT_SEED, Runtime, SpeedRequest, SpeedSettings
from quantyard.protocol.measurements import Speed
from quantyard.protocol.runner import Stage, StageOutcome, run_stage

_WARM_UP_TOKENS: Final = 4  # generated before the first repeat
_FACTS: Final = ("prompt_tokens_per_s", "generated_tokens_per_s", "peak_memory_bytes")
OnRepeat = Callable[[int], None]


def speed(stage: Stage, request: SpeedRequest) -> StageOutcome:
    """Time `/in/model/<model_file>`.

    Raises:
        StageFailure: 2 or 3 if the file cannot be measured, see `GgufModel.load`.
    """
    settings, path = request.settings, stage.in_dir / "model" / request.model_file
    stage.log("loading the file twice, to time the second load from a warm file cache")
    stage.begin("the file is loaded twice")
    settings = _warm_file_cache(path, request.runtime, settings)
    model, context, load_s = _open_timed_model(path, request.runtime, settings)
    with model, context:
        times = measure_speed(context, settings, lambda done: stage.progress(done, settings.repeats, "repeats"))
        found = Speed(
            label=request.label, **times.speeds(settings), load_s=load_s, peak_memory_bytes=peak_memory_bytes(),
            threads=context.threads, n_ctx=context.n_ctx, n_gpu_layers=request.runtime.n_gpu_layers, settings=settings,
        )
    (stage.files_dir / "speed.json").write_text(found.model_dump_json(indent=2) + "\n")
    facts = {name: getattr(found, name) for name in _FACTS}
    return StageOutcome(facts=facts, tools={"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"})


@dataclass(frozen=True)
class Times:
    """Seconds of every repeat."""

    prompt_s: tuple[float, ...]
    generation_s: tuple[float, ...]

    def speeds(self, settings: SpeedSettings) -> dict[str, float]:
        """The fields of a `Speed` that follow from these times: medians in tokens per second, and relative spreads."""
        prompt = [settings.prompt_tokens / seconds for seconds in self.prompt_s]
        generated = [settings.generated_tokens / seconds for seconds in self.generation_s]
        return {
            "prompt_tokens_per_s": median(prompt), "generated_tokens_per_s": median(generated),
            "prompt_spread": _spread_of_timed_runs(prompt), "generated_spread": _spread_of_timed_runs(generated),
        }


def measure_speed(context: Context, settings: SpeedSettings, on_repeat: OnRepeat) -> Times:
    """Warm up, then alternate prompt and generation, so that a machine that slows down (heat) affects both.

    Args:
        on_repeat: called with the number of repeats done.
    """
    prompt = _tokens_to_time(context.model, settings.prompt_tokens)
    generated = _tokens_to_time(context.model, settings.generated_tokens)
    _timed_prompt_s(context, prompt)
    _timed_generation_s(context, generated[:_WARM_UP_TOKENS])
    prompt_s, generation_s = [], []
    for done in range(1, settings.repeats + 1):
        prompt_s.append(_timed_prompt_s(context, prompt))
        generation_s.append(_timed_generation_s(context, generated))
        on_repeat(done)
    return Times(tuple(prompt_s), tuple(generation_s))


def _warm_file_cache(path: Path, runtime: Runtime, settings: SpeedSettings) -> SpeedSettings:
    """Load the file once, so that load_s does not depend on whether it was in the file cache before.

    Returns:
        The settings as they fit the model.
    """
    with GgufModel.load(path, runtime.n_gpu_layers) as model:
        return _fitting_speed_settings(model, settings)


def _open_timed_model(path: Path, runtime: Runtime, settings: SpeedSettings) -> tuple[GgufModel, Context, float]:
    """Model and context, and the seconds until they were ready."""
    started = time.perf_counter()
    model = GgufModel.load(path, runtime.n_gpu_layers)
    n_ctx = settings.prompt_tokens + settings.generated_tokens
    n_encoded = settings.prompt_tokens if model.has_encoder else 0
    context = Context(model, ContextSettings(n_ctx, threads=runtime.threads, n_encoded=n_encoded))
    return model, context, time.perf_counter() - started


def _timed_prompt_s(context: Context, tokens: Ints) -> float:
    """Seconds to process a prompt, from an empty KV cache."""
    context.clear()
    started = time.perf_counter()
    if context.model.has_encoder:
        context.encode(tokens)
    else:
        context.decode_one(tokens)
    return time.perf_counter() - started


def _timed_generation_s(context: Context, tokens: Ints) -> float:
    """Seconds to decode these tokens one by one, with the logits of each, from an empty KV cache."""
    context.clear()
    started = time.perf_counter()
    for position in range(len(tokens)):
        context.decode_one(tokens[position : position + 1], position)
    return time.perf_counter() - started


def _tokens_to_time(model: GgufModel, count: int) -> Ints:
    """Random valid tokens, the same every time; the first is BOS if the model adds it."""
    tokens = np.random.default_rng(DEFAULT_SEED).integers(0, model.n_vocab, count, np.int32)
    if model.adds_bos:
        tokens[0] = model.bos
    return tokens


def _spread_of_timed_runs(speeds: list[float]) -> float:
    return (max(speeds) - min(speeds)) / median(speeds)


def _fitting_speed_settings(model: GgufModel, settings: SpeedSettings) -> SpeedSettings:
    """The settings with no more tokens than the model was trained for."""
    longest = max(1, model.n_ctx_train)
    asked = {"prompt_tokens": settings.prompt_tokens, "generated_tokens": settings.generated_tokens}
    return settings.model_copy(update={name: min(tokens, longest) for name, tokens in asked.items()})


def main() -> None:
    """Entry point of the stage."""
    run_stage(SpeedRequest, speed)


if __name__ == "__main__":
    main()
