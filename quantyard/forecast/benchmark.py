"""What `make rates` runs: two models of random weights, made and measured by the ordinary stages.

Two sizes far apart tell what of a stage's time grows with the model and what does not. The large one is made of every
kind of type that is made or decoded by code of its own, the small one of what is needed to see the start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from quantyard.engines import Engine
from quantyard.execution.reporter import Reporter
from quantyard.execution.runner import Builder
from quantyard.forecast.samples import Book, Sample
from quantyard.forecast.time import conditions_of, learn
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.build import BuildOptions, make_plan
from quantyard.plan.evaluation import REPORT, MeasureOptions, add_measuring
from quantyard.plan.imatrix import Calibration, plain_label, with_imatrix
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ModelFile, Output, Step
from quantyard.protocol.base import digest_of_request
from quantyard.protocol.builder import RandomModelRequest
from quantyard.protocol.evaluation import DivergenceSettings, Runtime, SpeedSettings
from quantyard.quants.selection import parse_list
from quantyard.sources.resolve import Source, find_source
from quantyard.store.artifact import ModelId
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore

RANDOM: Final = "random_model"  # the step's label
SUITE: Final = "smoke"  # it needs no network
# What decodes does so for seconds, beside the second that its stage takes to start: with less, two timings were a third
# apart. Prompt and written tokens are in the proportion of the suites' own.
_SPEED: Final = SpeedSettings(prompt_tokens=512, generated_tokens=96, repeats=2)
_DIVERGENCE: Final = DivergenceSettings(n_chunks=4)
_CALIBRATION_CHUNKS: Final = 4  # of 512 tokens
# Its tokenizer has seen little text: 1.2 times the tokens of a real one on our prose, 1.4 times on the questions of
# `smoke` (held against SmolLM2's vocabulary of 49,152). A real model has that much less to decode.
_TOKENS: Final = 1.3


@dataclass(frozen=True)
class Trial:
    """One model, and what is made of it. What is only made is not measured: that takes most of the time."""

    name: str
    model: RandomModelRequest
    measured: str  # quants, beside the unquantized file
    made: str  # quants that are made as well
    reported: bool = False


# 6 and 40 million weights. Shapes as small models have them, rows a multiple of 256, which K-quants need.
TRIALS: Final = (
    Trial("small", RandomModelRequest(layers=2, width=256), "Q8_0", "Q4_K_M,IQ3_M", reported=True),
    Trial("large", RandomModelRequest(layers=10, width=512), "Q4_K_M,Q5_0,Q8_0", "IQ4_NL"),
)


@dataclass(frozen=True)
class Bench:
    """Where the trials run. `folder` is a store of their own, which nobody needs afterwards."""

    engine: Engine
    folder: Path
    threads: int = 0
    machine: str = ""


def time_model(trial: Trial, bench: Bench, reporter: Reporter) -> list[Sample]:
    """Run one trial; returns what each stage took.

    Raises:
        StageFailed, EngineError: a stage failed.
    """
    plan = trial_plan(trial, _model(trial, bench, reporter), bench)
    builder, book = Builder(plan, bench.engine, ModelStore(bench.folder, plan.source.model), REPO_DIR), Book()
    builder.run(reporter)
    learn(book, plan, builder.taken, conditions_of(builder), synthetic=True)
    return [_as_real(sample) for sample in book.samples]


def _as_real(sample: Sample) -> Sample:
    """Questions are counted, and those of a model with a real tokenizer are shorter."""
    return sample.model_copy(update={"amount": sample.amount * _TOKENS}) if sample.kind == "evaluate" else sample


def _model(trial: Trial, bench: Bench, reporter: Reporter) -> Source:
    """The random model, as a folder that could be anybody's."""
    digest = digest_of_request(trial.model)
    source = Source(ModelId("random", trial.name, digest), "huggingface", f"{trial.name} random model", ())
    step = Step(RANDOM, STAGES[RANDOM], trial.model, {}, 0)
    plan = BuildPlan(source, (step,), ModelFile(Output(RANDOM), "model.gguf"), (), "auto", "")
    builder = Builder(plan, bench.engine, ModelStore(bench.folder, source.model), REPO_DIR)
    builder.run(reporter)
    hashes = HashCache(bench.folder / ".hashes.json")
    return find_source(
        str(builder.output(RANDOM)), HubAccess(None, None), hashes, allow_pickle=False, gguf_file=None
    )


def trial_plan(trial: Trial, source: Source, bench: Bench) -> BuildPlan:
    """The plan: each quant with a matrix and without; what is measured is verified too."""
    measured = parse_list(trial.measured)
    options = BuildOptions(
        quants=(*measured, *parse_list(trial.made)), outtype="auto", allow_pickle=False, allow_requantize=False,
        allow_mismatch=True, threads=bench.threads, workers=1, endpoint=None,
    )  # allow_mismatch: nobody will ask this tokenizer anything
    plan = _with_and_without(make_plan(source, options), bench.threads)
    plan = add_measuring(replace(plan, targets=plan.targets[: len(measured)]), _measuring(bench))
    left_out = {f"verify {quant.name}" for quant in parse_list(trial.made)}
    left_out |= set() if trial.reported else {REPORT}
    return replace(plan, steps=tuple(step for step in plan.steps if step.label not in left_out))


def _with_and_without(plan: BuildPlan, threads: int) -> BuildPlan:
    calibration = Calibration(threads=threads, n_chunks=_CALIBRATION_CHUNKS)
    given = with_imatrix(plan, calibration, [target.quant.name for target in plan.targets])
    plain = {step.label: step for step in plan.steps}
    steps: list[Step] = []
    for step in given.steps:
        if "imatrix" in step.inputs:
            steps.append(replace(plain[step.label], label=plain_label("quantize", step.quant)))
        steps.append(step)
    return replace(given, steps=tuple(steps))


def _measuring(bench: Bench) -> MeasureOptions:
    from quantyard.plan.suites import find_suite  # imported late: no build should wait for a YAML parser

    suite = find_suite(SUITE).suite.model_copy(update={"divergence": _DIVERGENCE, "speed": _SPEED})
    return MeasureOptions(suite=suite, runtime=Runtime(threads=bench.threads), machine=bench.machine)
