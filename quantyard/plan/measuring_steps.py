"""The steps that measure files, a step for each stage and file, and what a measurement is set to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantyard.plan.stages import STAGES
from quantyard.plan.steps import ExternalInput, ModelFile, Origin, Step, StepOutput
from quantyard.protocol.behaviour_run import BehaviourRequest
from quantyard.protocol.evaluation import (
    CacheRequest,
    DatasetsRequest,
    DivergenceRequest,
    DomainsRequest,
    EvaluateRequest,
    OpenVinoRequest,
    Runtime,
    SimilarityRequest,
    SpeedRequest,
    Suite,
)
from quantyard.quants.catalog import Quant
from quantyard.store.artifact import Artifact


@dataclass(frozen=True)
class MeasureOptions:
    """The settings of a measurement, apart from the plan of the build."""

    suite: Suite
    runtime: Runtime
    files: Artifact | None = None  # the user's own suite: its tasks and text
    datasets: Artifact | None = None  # data sets copied from another machine
    baseline: Quant | None = None
    allow_unsafe_code: bool = False
    endpoint: str | None = None
    mix_nodes: bool = False  # compare speeds of unlike machines


@dataclass(frozen=True)
class _Files:
    """What is measured: the options, the files by label, and the label of the baseline."""

    options: MeasureOptions
    files: Mapping[str, ModelFile]
    baseline: str


def datasets_steps(options: MeasureOptions) -> tuple[Step, ...]:
    """The step that fetches data sets; () if the suite does not need any, or DATASETS gives them."""
    suite = options.suite
    if not suite.needs_network or options.datasets or not suite.tasks:
        return ()
    request = DatasetsRequest(
        tasks=tuple(entry.task for entry in suite.tasks), include_path=suite.include_path,
        allow_unsafe_code=options.allow_unsafe_code, endpoint=options.endpoint,
    )
    return (Step("datasets", STAGES["datasets"], request, _suite_input(options, suite.include_path), 0),)


def measuring_steps(options: MeasureOptions, baseline: str, files: Mapping[str, ModelFile]) -> list[Step]:
    """The steps of every stage that the suite has, the baseline's first.

    Args:
        baseline: its label.
        files: by label, the baseline among them.
    """
    suite, measured = options.suite, _Files(options, files, baseline)
    if suite.similarity is not None:
        return _steps_beside_baseline(measured, "similarity", SimilarityRequest, suite.similarity)
    steps = [_evaluate_step(options, label, file) for label, file in files.items()]
    if suite.divergence is not None:
        steps += _steps_beside_baseline(
            measured, "divergence", DivergenceRequest, suite.divergence, suite.divergence.text
        )
    if suite.domains is not None:
        steps += _steps_beside_baseline(measured, "domains", DomainsRequest, suite.domains, suite.domains.texts)
    if suite.behaviour is not None:
        steps += [_behaviour_step(options, label, file) for label, file in files.items()]
    if suite.speed is not None:
        by_turns = suite.speed.beside_baseline
        steps += _steps_beside_baseline(measured, "speed", SpeedRequest, suite.speed, beside=by_turns)
    # Of the baseline only if it is alone: it is not what is served.
    served = tuple(label for label in files if label != baseline) or (baseline,)
    if suite.cache is not None:
        steps += _steps_beside_baseline(measured, "cache", CacheRequest, suite.cache, suite.cache.text, labels=served)
    if suite.openvino is not None:
        steps += _steps_beside_baseline(
            measured, "openvino", OpenVinoRequest, suite.openvino, suite.openvino.text, labels=served
        )
    return steps


def _evaluate_step(options: MeasureOptions, label: str, file: ModelFile) -> Step:
    suite = options.suite
    request = EvaluateRequest(
        label=label, model_file=file.path, tasks=suite.tasks, include_path=suite.include_path,
        apply_chat_template=suite.apply_chat_template,
        thought_tokens=suite.thought_tokens if suite.apply_chat_template else 0, seed=suite.seed,
        allow_unsafe_code=options.allow_unsafe_code, runtime=options.runtime,
    )
    inputs: dict[str, Origin] = {"model": file.origin} | _suite_input(options, suite.include_path)
    if options.datasets is not None:
        inputs["datasets"] = ExternalInput(options.datasets)
    elif datasets_steps(options):
        inputs["datasets"] = StepOutput("datasets")
    return Step(f"evaluate {label}", STAGES["evaluate"], request, inputs, 0, label)


def _behaviour_step(options: MeasureOptions, label: str, file: ModelFile) -> Step:
    suite, settings = options.suite, options.suite.behaviour
    assert settings is not None
    request = BehaviourRequest(
        label=label, model_file=file.path, settings=settings, thought_tokens=suite.thought_tokens, seed=suite.seed,
        runtime=options.runtime,
    )
    return Step(f"behaviour {label}", STAGES["behaviour"], request, {"model": file.origin}, 0, label)


def _steps_beside_baseline(
    measured: _Files, stage: str, kind: type[Any], settings: object, texts: str | None = None, *, beside: bool = True,
    labels: tuple[str, ...] | None = None,
) -> list[Step]:
    """A step for each file of a stage that compares it with the baseline; the baseline itself is measured alone.

    Args:
        kind: of the stage's request.
        texts: the files of the user's suite that the stage reads; None: ours.
        beside: whether the files are compared, or each is measured alone.
        labels: of the files; default: all.
    """
    steps, options, base = [], measured.options, measured.files[measured.baseline]
    for label in labels or measured.files:
        file = measured.files[label]
        inputs: dict[str, Origin] = {"model": file.origin}
        is_compared = beside and file != base
        if is_compared:
            inputs["baseline"] = base.origin
        request = kind(
            label=label, model_file=file.path, baseline_file=base.path if is_compared else None, settings=settings,
            runtime=options.runtime,
        )
        inputs |= _suite_input(options, texts)
        steps.append(Step(f"{stage} {label}", STAGES[stage], request, inputs, 0, label))
    return steps


def _suite_input(options: MeasureOptions, path: str | None) -> dict[str, Origin]:
    """The files of the user's suite, for a stage that reads `path` of them."""
    return {"suite": ExternalInput(options.files)} if path is not None and options.files is not None else {}
