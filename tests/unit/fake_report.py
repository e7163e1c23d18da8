"""A small report that is whole: what the stage `report` leaves, with every part of it filled in."""

from __future__ import annotations

import math

from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.evaluation import ReportRequest, SpeedSettings
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement, Score
from quantyard.protocol.speed_results import Speed
from quantyard.protocol.task_results import FileFacts

_SCORE = Score(
    task="arc_easy", metric="acc", n=200, result=Interval(value=0.475, low=0.41, high=0.54), chance=0.25,
    higher_is_better=True,
)


def report_of(request: ReportRequest) -> EvalReport:
    """The baseline, and beside it every other file: a little worse, and quicker."""
    measurements = tuple(_measurement(label, label == request.baseline) for label in request.labels)
    return EvalReport(
        title=request.title, suite=request.suite, baseline=request.baseline, measurements=measurements, n_questions=200
    )


def _measurement(label: str, is_baseline: bool) -> Measurement:
    facts = FileFacts(label=label, size_bytes=105_000_000, bits_per_weight=6.17, n_params=1000, architecture="llama")
    compared = () if is_baseline else (_comparison("arc_easy", "acc"), _comparison("wikitext", "word_perplexity"))
    return Measurement(
        file=facts, scores=(_SCORE,), comparisons=compared, divergence=_divergence(label, is_baseline),
        speed=_speed(label),
    )


def _comparison(task: str, metric: str) -> Comparison:
    delta = Interval(value=-0.015, low=-0.035, high=0.005)
    return Comparison(
        task=task, metric=metric, n=200, baseline=0.475, value=0.46, delta=delta, lost=5, gained=2, mcnemar_p=0.45,
        verdict="too few questions", questions_needed=3100,
    )


def _divergence(label: str, is_baseline: bool) -> Divergence:
    found = Divergence(
        label=label, text="prose", n_ctx=512, n_chunks=4, n_tokens=1024, rolling_perplexity=19.0,
        perplexity=Estimate(value=21.0, stderr=0.2),
    )
    if is_baseline:
        return found
    beside = {
        "baseline_perplexity": Estimate(value=20.0, stderr=0.2), "mean_kld": Estimate(value=0.0312, stderr=0.001),
        "ln_perplexity_ratio": Estimate(value=math.log(21 / 20), stderr=0.01),
        "top1_agreement": Estimate(value=0.913, stderr=0.004),
    }
    return found.model_copy(update=beside)


def _speed(label: str) -> Speed:
    return Speed(
        label=label, prompt_tokens_per_s=812.4, generated_tokens_per_s=61.2, prompt_spread=0.02, generated_spread=0.03,
        load_s=0.4, peak_memory_bytes=300 * 2**20, threads=2, n_ctx=1024, n_gpu_layers=0, settings=SpeedSettings(),
    )
