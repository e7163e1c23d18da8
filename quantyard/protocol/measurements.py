"""The report: what was measured of every file, and how each compares with the baseline."""

from typing import Annotated, Final, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen, JsonObject
from quantyard.protocol.behaviour import BehaviourName
from quantyard.protocol.cache_results import CacheMeasurement
from quantyard.protocol.divergence_results import Divergence, Domains
from quantyard.protocol.estimates import Interval
from quantyard.protocol.evaluation import Suite
from quantyard.protocol.openvino_results import OpenVinoMeasurement
from quantyard.protocol.predictions import FilePredictions
from quantyard.protocol.similarity_results import Similarity
from quantyard.protocol.speed_results import Speed
from quantyard.protocol.task_results import FileFacts, LayoutNoise, SelfCheck

REPORT_VERSION: Final = 1
Verdict = Literal["same", "worse", "better", "too few questions", "no signal"]


class Score(Frozen):
    """One metric of one task on one file."""

    task: str
    metric: str
    n: int
    result: Interval
    chance: float | None
    higher_is_better: bool


class Comparison(Frozen):
    """One metric of one task: a file against the baseline, question by question.

    `delta` is the file's value minus the baseline's, in the metric's unit; for perplexities it is the relative change
    (0.01: 1 % more).
    """

    task: str
    metric: str
    n: int
    baseline: float
    value: float
    delta: Interval
    lost: int  # questions right on the baseline and wrong on the file; 0 for metrics that are not right-or-wrong
    gained: int
    mcnemar_p: float | None  # exact, two-sided; None for metrics that are not right-or-wrong
    # p of the test that decides, after Holm's correction over the report's comparisons; None: no signal, or 0.1.0's
    adjusted_p: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    verdict: Verdict
    questions_needed: int | None = None  # how many would settle the verdict "too few questions"


class BehaviourScore(Frozen):
    """The answers of one file to the scenarios of one kind; what is less a baseline's is None for the baseline.

    Each question counts once: with several answers by the mean of these. `comparison` is that of the accuracies, with
    the tests and verdicts of tasks. The variances are components of that of an answer's being right: between questions,
    and between the answers to one (None with one answer each).
    """

    suite: BehaviourName
    n: int  # questions
    n_answers: int  # of each question
    accuracy: Interval
    length: Interval  # tokens of an answer
    thought: float = 0.0  # of which tokens of thoughts, on average
    unfinished: Interval  # shares of answers
    loops: Interval
    comparison: Comparison | None = None
    length_delta: Interval | None = None
    unfinished_delta: Interval | None = None
    loop_delta: Interval | None = None
    question_variance: float | None = None
    seed_variance: float | None = None


class Measurement(Frozen):
    """Everything measured on one file."""

    file: FileFacts
    self_check: SelfCheck | None = None
    scores: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()  # empty for the baseline
    divergence: Divergence | None = None
    # Of all tasks together.
    layout_noise: Annotated[LayoutNoise | None, Field(exclude_if=lambda value: value is None)] = None
    domains: Annotated[Domains | None, Field(exclude_if=lambda value: value is None)] = None
    speed: Speed | None = None
    cache: Annotated[CacheMeasurement | None, Field(exclude_if=lambda value: value is None)] = None
    openvino: Annotated[OpenVinoMeasurement | None, Field(exclude_if=lambda value: value is None)] = None
    similarity: Annotated[Similarity | None, Field(exclude_if=lambda value: value is None)] = None
    behaviours: Annotated[tuple[BehaviourScore, ...], Field(exclude_if=lambda value: not value)] = ()
    no_behaviours: Annotated[str, Field(exclude_if=lambda value: not value)] = ""  # why, as half a sentence
    n_truncated: int = 0  # requests cut from the left to the longest allowed
    # Requests whose thoughts did not end within the suite's `thought_tokens`.
    n_unanswered: Annotated[int, Field(exclude_if=lambda value: not value)] = 0
    # With which the API test compares what is served.
    predictions: Annotated[FilePredictions | None, Field(exclude_if=lambda value: value is None)] = None


class EvalReport(Frozen):
    """The cost of quantization: every file compared with the baseline. Plots and the card use only this."""

    report_version: Literal[1] = REPORT_VERSION
    title: str
    suite: Suite
    baseline: str
    measurements: tuple[Measurement, ...]  # the baseline's first
    versions: dict[str, str] = {}
    hardware: JsonObject = {}
    n_questions: int = 0
    duration_s: float = 0.0
