"""The stage `speed`: prompt speed, generation speed, energy and peak memory of one GGUF on this machine.

Measured as in llama-bench (tools/llama-bench): with random tokens, because their values do not matter; the prompt in
batches with the logits of its last token only; generation one token at a time. Both are warmed up first, and begin
with an empty KV cache, then behind each depth of context that the suite names. Of an encoder-decoder the encoder reads
the prompt, and the decoder writes the generated tokens in answer to it. The stage runs in a process of its own, so its
peak memory is the model's: the baseline is loaded after it was read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import llama_cpp
import numpy as np

from eval.analysis.cache_types import paired_speed_share
from eval.analysis.speed_tests import TimedTest, speed_test
from eval.llama.context import BATCH_TOKENS, Context, ContextSettings, Ints
from eval.llama.model import GgufModel
from quantyard.hardware.energy import EnergyMeter, find_energy_meter
from quantyard.hardware.machine import peak_memory_bytes
from quantyard.protocol.estimates import Interval
from quantyard.protocol.evaluation import DEFAULT_SEED, Runtime, SpeedRequest, SpeedSettings
from quantyard.protocol.runner import Stage, StageOutcome, run_stage, stage_node_facts
from quantyard.protocol.speed_results import Speed, SpeedTest

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
    meter = find_energy_meter(on_gpu=request.runtime.n_gpu_layers != 0)
    model, context, load_s = _open_timed_model(path, request.runtime, settings)
    with model:
        with context:
            times = measure_speed(
                context, settings, lambda done: stage.progress(done, settings.repeats, "repeats"), meter
            )
        peak_bytes = peak_memory_bytes()
        tests = (*times.tests(settings), *_deeper_speed_tests(stage, model, request.runtime, settings, meter))
        paces = _measure_paces(stage, request, model, settings)
    found = Speed(
        label=request.label, **times.speeds(settings), load_s=load_s, peak_memory_bytes=peak_bytes,
        threads=context.threads, n_ctx=context.n_ctx, n_gpu_layers=request.runtime.n_gpu_layers, settings=settings,
        node_class=stage_node_facts().node_class,
        tests=tests, energy_source=meter.source, energy_missing=meter.missing, prompt_pace=paces[0],
        generation_pace=paces[1],
    )
    (stage.files_dir / "speed.json").write_text(found.model_dump_json(indent=2) + "\n")
    facts = {name: getattr(found, name) for name in _FACTS}
    return StageOutcome(facts=facts, tools={"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"})


@dataclass(frozen=True)
class Times:
    """Seconds of every repeat, and joules, if they could be read."""

    prompt_s: tuple[float, ...]
    generation_s: tuple[float, ...]
    prompt_j: tuple[float, ...] = ()
    generation_j: tuple[float, ...] = ()

    def speeds(self, settings: SpeedSettings) -> dict[str, float]:
        """The fields of a `Speed` that follow from these times: medians in tokens per second, and relative spreads."""
        prompt = [settings.prompt_tokens / seconds for seconds in self.prompt_s]
        generated = [settings.generated_tokens / seconds for seconds in self.generation_s]
        return {
            "prompt_tokens_per_s": median(prompt), "generated_tokens_per_s": median(generated),
            "prompt_spread": _spread_of_timed_runs(prompt), "generated_spread": _spread_of_timed_runs(generated),
        }

    def tests(self, settings: SpeedSettings, depth: int = 0, batch: int = BATCH_TOKENS) -> tuple[SpeedTest, ...]:
        """The tests that these times are of."""
        timed = (
            TimedTest("pp", settings.prompt_tokens, self.prompt_s, self.prompt_j, depth, batch),
            TimedTest("tg", settings.generated_tokens, self.generation_s, self.generation_j, depth, batch),
        )
        return tuple(speed_test(test) for test in timed if test.seconds)


def measure_speed(
    context: Context, settings: SpeedSettings, on_repeat: OnRepeat, meter: EnergyMeter = EnergyMeter(),  # noqa: B008
    depth: int = 0, *, generates: bool = True,
) -> Times:
    """Warm up, then alternate prompt and generation, so that a machine that slows down (heat) affects both.

    Args:
        on_repeat: called with the number of repeats done.
        depth: tokens in the cache before each.
        generates: False times the prompt alone.
    """
    prompt = _tokens_to_time(context.model, settings.prompt_tokens)
    generated = _tokens_to_time(context.model, settings.generated_tokens)
    runner = _TimedRunner(context, depth, meter)
    runner.prompt(prompt)
    if generates:
        runner.generation(generated[:_WARM_UP_TOKENS])
    read, written = [], []
    for done in range(1, settings.repeats + 1):
        read.append(runner.prompt(prompt))
        if generates:
            written.append(runner.generation(generated))
        on_repeat(done)
    joules = [tuple(j for _, j in runs if j is not None) for runs in (read, written)]
    return Times(tuple(s for s, _ in read), tuple(s for s, _ in written), *joules)


class _TimedRunner:
    """Times runs of a context, each behind the same number of tokens."""

    def __init__(self, context: Context, depth: int, meter: EnergyMeter) -> None:
        self._context, self._depth, self._meter = context, depth, meter
        self._before = _tokens_to_time(context.model, depth) if depth else None
        self._is_filled = False

    def prompt(self, tokens: Ints) -> tuple[float, float | None]:
        """Seconds and joules to process a prompt."""
        if self._context.model.has_encoder:
            return self._timed(lambda: self._context.encode(tokens))
        return self._timed(lambda: self._context.decode_one(tokens, self._depth))

    def generation(self, tokens: Ints) -> tuple[float, float | None]:
        """Seconds and joules to decode these tokens one by one, with the logits of each."""

        def decode() -> None:
            for at in range(len(tokens)):
                self._context.decode_one(tokens[at : at + 1], self._depth + at)

        return self._timed(decode)

    def _timed(self, run: Callable[[], object]) -> tuple[float, float | None]:
        self._return_to_depth()
        before, started = self._meter.read_j(), time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        return seconds, self._meter.used_j(before) if before else None

    def _return_to_depth(self) -> None:
        """Leave `depth` tokens in the cache. A recurrent state cannot be rolled back, so it is made anew."""
        if self._before is None:
            self._context.clear()
        elif self._is_filled and not self._context.model.has_states:
            self._context.remove(0, self._depth)
        else:
            self._context.clear()
            self._context.decode_one(self._before)
            self._is_filled = True


def _deeper_speed_tests(
    stage: Stage, model: GgufModel, runtime: Runtime, settings: SpeedSettings, meter: EnergyMeter
) -> Iterator[SpeedTest]:
    """The tests at other depths and batches; generation does not depend on the batch."""
    if model.has_encoder:
        return
    asked = [(depth, BATCH_TOKENS) for depth in settings.depths if depth]
    asked += [(depth, batch) for batch in settings.batches if batch != BATCH_TOKENS for depth in (0, *settings.depths)]
    for done, (depth, batch) in enumerate(dict.fromkeys(asked), 1):
        n_ctx = depth + max(settings.prompt_tokens, settings.generated_tokens)
        with Context(model, ContextSettings(n_ctx, threads=runtime.threads, batch_tokens=batch)) as context:
            times = measure_speed(
                context, settings, lambda _: None, meter, depth, generates=batch == BATCH_TOKENS
            )
        yield from times.tests(settings, depth, batch)
        stage.progress(done, len(dict.fromkeys(asked)), "checks")


def _measure_paces(
    stage: Stage, request: SpeedRequest, model: GgufModel, settings: SpeedSettings
) -> tuple[Interval | None, Interval | None]:
    """Prompt and generation beside the baseline's, both timed by turns; (None, None) without a baseline."""
    if request.baseline_file is None:
        return None, None
    path = stage.in_dir / "baseline" / request.baseline_file
    with GgufModel.load(path, request.runtime.n_gpu_layers) as baseline:
        return time_by_turns(baseline, model, request.runtime, settings)


def time_by_turns(
    baseline: GgufModel, model: GgufModel, runtime: Runtime, settings: SpeedSettings
) -> tuple[Interval | None, Interval | None]:
    """How fast the model reads and generates beside the baseline; each repeat begins with the other one."""
    prompt, generated = (_tokens_to_time(model, n) for n in (settings.prompt_tokens, settings.generated_tokens))
    with _timed_context(baseline, runtime, settings) as first, _timed_context(model, runtime, settings) as second:
        runners = [_TimedRunner(context, 0, EnergyMeter()) for context in (first, second)]
        for runner in runners:
            runner.prompt(prompt)
            runner.generation(generated[:_WARM_UP_TOKENS])
        read: list[list[float]] = [[], []]
        written: list[list[float]] = [[], []]
        for repeat in range(settings.repeats):
            for place in (0, 1) if repeat % 2 == 0 else (1, 0):
                read[place].append(runners[place].prompt(prompt)[0])
                written[place].append(runners[place].generation(generated)[0])
    return paired_speed_share(*read), paired_speed_share(*written)


def _timed_context(model: GgufModel, runtime: Runtime, settings: SpeedSettings) -> Context:
    n_ctx = settings.prompt_tokens + settings.generated_tokens
    n_encoded = settings.prompt_tokens if model.has_encoder else 0
    return Context(model, ContextSettings(n_ctx, threads=runtime.threads, n_encoded=n_encoded))


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
    context = _timed_context(model, runtime, settings)
    return model, context, time.perf_counter() - started


def _tokens_to_time(model: GgufModel, count: int) -> Ints:
    """Random valid tokens, the same every time; the first is BOS if the model adds it."""
    tokens = np.random.default_rng(DEFAULT_SEED).integers(0, model.n_vocab, count, np.int32)
    if model.adds_bos:
        tokens[0] = model.bos
    return tokens


def _spread_of_timed_runs(speeds: list[float]) -> float:
    return (max(speeds) - min(speeds)) / median(speeds)


def _fitting_speed_settings(model: GgufModel, settings: SpeedSettings) -> SpeedSettings:
    """The settings with no more tokens and no deeper contexts than the model was trained for."""
    longest = max(1, model.n_ctx_train)
    prompt, generated = (min(n, longest) for n in (settings.prompt_tokens, settings.generated_tokens))
    depths = tuple(depth for depth in settings.depths if depth + max(prompt, generated) <= longest)
    return settings.model_copy(update={"prompt_tokens": prompt, "generated_tokens": generated, "depths": depths})


def main() -> None:
    """Entry point of the stage."""
    run_stage(SpeedRequest, speed)


if __name__ == "__main__":
    main()
