"""What `make rates` runs: the ordinary stages make and measure two models of random weights.

Two sizes far apart separate the time that grows with the model from the time that does not. The large model is made in
one quant of each timing class, the small one in those that show the fixed part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from quantyard.engines import Engine
from quantyard.execution.reporter import StepReporter
from quantyard.execution.runner import PlanRunner
from quantyard.forecast.samples import ForecastBook, TimingSample
from quantyard.forecast.time import forecast_conditions, learn_forecast_times
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.plan.evaluation import add_measuring_steps
from quantyard.plan.imatrix import Calibration, plain_step_label, plan_with_imatrix
from quantyard.plan.measuring_steps import MeasureOptions
from quantyard.plan.report_step import REPORT
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ModelFile, Step, StepOutput
from quantyard.protocol.base import stage_request_digest
from quantyard.protocol.builder import RandomModelRequest
from quantyard.protocol.evaluation import DivergenceSettings, Runtime, SpeedSettings
from quantyard.protocol.text_findings import PLAIN_TEXT
from quantyard.quants.selection import parse_quants
from quantyard.sources.resolve import Source, find_source
from quantyard.store.artifact import ModelId
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore

RANDOM: Final = "random_model"  # the step's label
SUITE: Final = "smoke"  # it needs no network
# Decoding takes some seconds, compared with one second for the start of a stage: with less, two timings differed by a
# third. Prompt and generated tokens have the same proportion as in the suites.
_SPEED: Final = SpeedSettings(prompt_tokens=512, generated_tokens=96, repeats=2)
_DIVERGENCE: Final = DivergenceSettings(n_chunks=4, weights_chunks=0)
_CALIBRATION_CHUNKS: Final = 4  # of 512 tokens
# The tokenizer of the random model needs 1.2 times the tokens of a real one for our prose, and 1.4 times for the
# questions of `smoke` (compared with SmolLM2's vocabulary of 49,152). A real model has that much less to decode.
_TOKENS: Final = 1.3


@dataclass(frozen=True)
class TimingTrial:
    """One model, and the quants that are made of it. Measuring takes most of the time, so that some are only made."""

    name: str
    model: RandomModelRequest
    measured: str  # quants, in addition to the unquantized file
    made: str  # quants that are made, but not measured
    reported: bool = False


# 6 and 40 million weights. Shapes like those of small models; K-quants need rows of a multiple of 256.
TRIALS: Final = (
    TimingTrial("small", RandomModelRequest(layers=2, width=256), "Q8_0", "Q4_K_M,IQ3_M", reported=True),
    TimingTrial("large", RandomModelRequest(layers=10, width=512), "Q4_K_M,Q5_0,Q8_0", "IQ4_NL"),
)


@dataclass(frozen=True)
class TimingBench:
    """Where the trials run. `folder` is a store for them alone, not needed afterwards."""

    engine: Engine
    folder: Path
    threads: int = 0


def forecast_benchmark_model(trial: TimingTrial, bench: TimingBench, reporter: StepReporter) -> list[TimingSample]:
    """Run one trial; returns what each stage took.

    Raises:
        StageFailed, EngineError: a stage failed.
    """
    plan = forecast_benchmark_plan(trial, _benchmark_model(trial, bench, reporter), bench)
    runner, book = PlanRunner(plan, bench.engine, ModelStore(bench.folder, plan.source.model), REPO_DIR), ForecastBook()
    runner.run(reporter)
    learn_forecast_times(book, plan, runner.taken, forecast_conditions(runner), synthetic=True)
    return [_sample_as_of_real_model(sample) for sample in book.samples]


def _sample_as_of_real_model(sample: TimingSample) -> TimingSample:
    """The sample of a model with a real tokenizer: its questions have fewer tokens."""
    return sample.model_copy(update={"amount": sample.amount * _TOKENS}) if sample.kind == "evaluate" else sample


def _benchmark_model(trial: TimingTrial, bench: TimingBench, reporter: StepReporter) -> Source:
    """The random model, as a local folder."""
    digest = stage_request_digest(trial.model)
    source = Source(ModelId("random", trial.name, digest), "huggingface", f"{trial.name} random model", ())
    step = Step(RANDOM, STAGES[RANDOM], trial.model, {}, 0)
    plan = BuildPlan(source, (step,), ModelFile(StepOutput(RANDOM), "model.gguf"), (), "auto", "")
    runner = PlanRunner(plan, bench.engine, ModelStore(bench.folder, source.model), REPO_DIR)
    runner.run(reporter)
    hashes = HashCache(bench.folder / ".hashes.json")
    return find_source(
        str(runner.output(RANDOM)), HubAccess(None, None), hashes, allow_pickle=False, gguf_file=None
    )


def forecast_benchmark_plan(trial: TimingTrial, source: Source, bench: TimingBench) -> BuildPlan:
    """The plan: each quant with a matrix and without; what is measured is verified too."""
    measured = parse_quants(trial.measured)
    options = BuildOptions(
        quants=(*measured, *parse_quants(trial.made)), outtype="auto", allow_pickle=False, allow_requantize=False,
        allow_mismatch=(PLAIN_TEXT,), parity="twin", allow_twin_mismatch=True, threads=bench.threads, workers=1,
        endpoint=None,
    )  # allow_mismatch: the tokenizer of a random model is never used
    plan = _plan_with_and_without_imatrix(make_build_plan(source, options), bench.threads)
    plan = add_measuring_steps(replace(plan, targets=plan.targets[: len(measured)]), _benchmark_measure_options(bench))
    left_out = {f"verify {quant.name}" for quant in parse_quants(trial.made)}
    left_out |= set() if trial.reported else {REPORT}
    return replace(plan, steps=tuple(step for step in plan.steps if step.label not in left_out))


def _plan_with_and_without_imatrix(plan: BuildPlan, threads: int) -> BuildPlan:
    calibration = Calibration(threads=threads, n_chunks=_CALIBRATION_CHUNKS)
    given = plan_with_imatrix(plan, calibration, [target.quant.name for target in plan.targets])
    plain = {step.label: step for step in plan.steps}
    steps: list[Step] = []
    for step in given.steps:
        if "imatrix" in step.inputs:
            steps.append(replace(plain[step.label], label=plain_step_label("quantize", step.quant)))
        steps.append(step)
    return replace(given, steps=tuple(steps))


def _benchmark_measure_options(bench: TimingBench) -> MeasureOptions:
    from quantyard.plan.suites import find_suite  # imported late: no build should wait for a YAML parser

    suite = find_suite(SUITE).suite.model_copy(update={"divergence": _DIVERGENCE, "speed": _SPEED})
    return MeasureOptions(suite=suite, runtime=Runtime(threads=bench.threads))
