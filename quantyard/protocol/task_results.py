"""The records of `evaluate`: what one file scores on the tasks of a suite.

Log-probabilities are natural logarithms (nats), sizes are bytes.
"""

from typing import Annotated, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen, JsonObject, Sha256
from quantyard.protocol.predictions import FilePredictions


class FileFacts(Frozen):
    """The file that was measured."""

    label: str
    size_bytes: int
    bits_per_weight: float  # over all tensors, as llama.cpp counts it
    n_params: int
    architecture: str
    sha256: Sha256 | None = None


class SelfCheck(Frozen):
    """The self-check of the measurement on this file, before the first task.

    Differences are root mean squares over `n_tokens` log-probabilities, in nats per token; the rolling one is the
    largest of the check's texts, in nats per token.
    """

    known_answers: int  # pairs of continuations of which the more likely one is known
    known_answers_right: int
    n_tokens: int
    packed_difference: float  # packed scores against decoding one sequence at a time
    noise: float  # the A/A control: one sequence at a time, with flash attention on against off
    rolling_difference: float  # loglikelihood against rolling loglikelihood of the same text


class AccuracyNoise(Frozen):
    """Two uncertainties of an accuracy, as shares: that of the packing of the questions, and that of their draw."""

    n_questions: int  # all that were asked
    expected_flips: float  # of them, questions with another most likely answer in a second packing
    layout_sd: float  # standard deviation over packings, at most
    sample_stderr: float  # standard error over questions


class LayoutNoise(Frozen):
    """How far scores depend on what is decoded beside them: questions scored in a second packing."""

    n_questions: int  # that were scored again
    n_requests: int  # theirs
    sd_nats: float  # of one score, over packings
    flips: int  # questions with another most likely answer in the second packing
    # None: the task has no choices to pick from, or no accuracy.
    accuracy: Annotated[AccuracyNoise | None, Field(exclude_if=lambda value: value is None)] = None


class MetricOutcome(Frozen):
    """One metric of one task: lm-eval's aggregate, and its value for every question in order.

    A value is a number, or for perplexities the pair (loglikelihood, weight in words or bytes).
    """

    name: str  # acc, acc_norm, exact_match, word_perplexity, bits_per_byte …
    filter: str  # lm-eval's filter, usually "none"
    value: float
    stderr: float | None  # lm-eval's own
    higher_is_better: bool
    per_question: tuple[float | tuple[float, float], ...]


class TaskOutcome(Frozen):
    """One task (never a group) on one file."""

    task: str
    entry: str  # the suite's entry it came from: the task itself, or its group
    version: str
    output_type: Literal["loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until"]
    num_fewshot: int
    n: int  # questions
    chance: float | None  # the accuracy of guessing: mean of 1 / choices; None if there are no choices
    doc_hashes: tuple[str, ...]  # lm-eval's, to pair questions across files
    groups: Annotated[tuple[int, ...], Field(exclude_if=lambda value: not value)] = ()  # questions about one passage
    layout_noise: Annotated[LayoutNoise | None, Field(exclude_if=lambda value: value is None)] = None
    metrics: tuple[MetricOutcome, ...]
    duration_s: float


class Evaluation(Frozen):
    """The result of `evaluate` for one file."""

    file: FileFacts
    self_check: SelfCheck | None = None  # None: no task was asked
    outcomes: tuple[TaskOutcome, ...]
    n_requests: int
    n_tokens_decoded: int  # equals the size of the prefix trees
    n_tokens_requested: int  # tokens that decoding each request alone would have taken
    n_truncated: int = 0  # requests cut from the left to the longest allowed
    # Requests whose thoughts did not end within the suite's `thought_tokens`.
    n_unanswered: Annotated[int, Field(exclude_if=lambda value: not value)] = 0
    duration_s: float
    versions: dict[str, str]
    hardware: JsonObject
    predictions: Annotated[FilePredictions | None, Field(exclude_if=lambda value: value is None)] = None
