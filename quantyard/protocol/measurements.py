"""The records of measurements: those that the stages of `eval` leave, and the report.

Log-probabilities are natural logarithms (nats), sizes are bytes, speeds are tokens per second; an `Interval` is a 95 %
confidence interval.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen, JsonObject, Sha256
from quantyard.protocol.behaviour import BehaviourName
from quantyard.protocol.cache_types import CacheName, CacheRefusal, CacheSettings
from quantyard.protocol.evaluation import SpeedSettings, Suite
from quantyard.protocol.openvino import OpenVinoRefusal, OpenVinoSettings
from quantyard.protocol.predictions import FilePredictions

REPORT_VERSION: Final = 1
CONFIDENCE: Final = 0.95


class Interval(Frozen):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Estimate(Frozen):
    """A mean and its standard error.

    Neighbouring tokens are not independent, so the standard error of a mean over tokens is that of the clusters that
    the text was cut into, and `df` is their number less one (None: not known, large). `clusters` are what the clusters
    say each; their mean is `value`, so that two files can be compared cluster by cluster.
    """

    value: float
    stderr: float
    df: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    clusters: Annotated[tuple[float, ...], Field(exclude_if=lambda value: not value)] = ()


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


class LayoutNoise(Frozen):
    """How far scores depend on what is decoded beside them: questions scored in a second packing."""

    n_questions: int  # that were scored again
    n_requests: int  # theirs
    sd_nats: float  # of one score, over packings
    flips: int  # questions with another most likely answer in the second packing


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
    self_check: SelfCheck
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


class DivergenceParts(Frozen):
    """What of a file's mean divergence is its own, and what the backend adds, over the first chunks of the text.

    llama.cpp multiplies quantized weights with activations rounded to 8 bits. `of_file` is the divergence of the
    weights alone: both files' weights as float32, with float32 activations. The rest depends on backend and build.
    """

    n_tokens: int  # scored
    whole: Estimate  # mean KLD of these tokens, as this backend computes both files
    of_file: Estimate  # "lost by the file"
    of_backend: Estimate  # "added by this backend": whole less of_file; may be negative


class DivergencePartsMissing(Frozen):
    """Why the parts of a file's divergence are not known."""

    reason: Literal["TOO_LARGE", "NOT_CONVERTED"]
    finding: str  # half a sentence


class Divergence(Frozen):
    """Perplexity of one file and its divergence from the baseline over the same tokens.

    Defined as in llama.cpp's tools/perplexity: chunks of `n_ctx` tokens, of which the second half is scored.
    `rolling_perplexity` is lm-eval's: every token once, in windows of `n_ctx`. KL divergences are
    KL(baseline || file), in nats; Δp is the change of the probability of the token that follows.
    """

    label: str
    text: str  # name of the text
    n_ctx: int
    n_chunks: int
    n_tokens: int  # scored
    perplexity: Estimate
    rolling_perplexity: float | None = None  # per token, of the text's documents; None: not requested
    baseline_perplexity: Estimate | None = None
    ln_perplexity_ratio: Estimate | None = None  # ln(PPL / baseline PPL); the error accounts for their correlation
    mean_kld: Estimate | None = None
    kld_percentiles: dict[str, float] = {}  # "50", "90", "95", "99", "99.9", "100"
    top1_agreement: Estimate | None = None  # share of tokens, 0 to 1
    mean_delta_p: Estimate | None = None
    rms_delta_p: Estimate | None = None
    parts: Annotated[DivergenceParts | None, Field(exclude_if=lambda value: value is None)] = None
    parts_missing: Annotated[DivergencePartsMissing | None, Field(exclude_if=lambda value: value is None)] = None
    # What computed it, with its build: "llama.cpp of llama-cpp-python 0.3.36 on the CPU (AVX2)".
    backend: Annotated[str, Field(exclude_if=lambda value: not value)] = ""
    duration_s: float = 0.0


class DomainPart(Frozen):
    """Some of the scored tokens of a domain: those at some positions, or those of answers or of tool calls."""

    name: str  # "0-512", "answers", "tool calls"
    n_tokens: int  # scored
    mean_kld: Estimate
    kld_p99: float
    top1_agreement: Estimate


DomainForm = Literal[
    "text", "chat template", "chat template, calls as text", "chat template, tools as text", "labelled text"
]


class DomainDivergence(Frozen):
    """One file and the baseline over the same tokens of one domain; what compares with it is None for the baseline.

    Each document and conversation is read by itself, from its first token. Of a document every token is scored but its
    first, of a conversation those that the assistant writes.
    """

    domain: str
    form: DomainForm  # how the model reads conversations; "text": the domain has documents
    n_documents: int
    n_tokens: int  # scored
    n_read: int  # decoded tokens
    n_bytes: int  # of the text that was read, UTF-8
    perplexity: Estimate  # of the scored tokens, after what stands before each
    mean_kld: Estimate | None = None
    kld_p99: float | None = None
    top1_agreement: Estimate | None = None
    parts: tuple[DomainPart, ...] = ()


class DomainLeftOut(Frozen):
    """A domain, or a part of one, that was not measured, or not as it was meant."""

    domain: str
    reason: str  # a sentence without its stop


class Domains(Frozen):
    """The result of `domains` for one file."""

    label: str
    domains: tuple[DomainDivergence, ...]
    left_out: tuple[DomainLeftOut, ...] = ()
    duration_s: float = 0.0


class CachePosition(Frozen):
    """The divergence of the tokens that are predicted from `first` to `last` tokens of context."""

    first: int
    last: int
    n_tokens: int
    mean_kld: Estimate


class CacheTypeResult(Frozen):
    """One type of the KV cache on one file, beside the same file with f16.

    A type that llama.cpp cannot run has a `refusal` in place of results. Bytes are those that llama.cpp allocates for a
    token of context with all windows kept; speeds are shares of the speed with f16, paired repeat by repeat.
    """

    type: CacheName  # q8_0, or q8_0/f16 for keys and values apart
    refusal: CacheRefusal = ""
    detail: str = ""  # llama.cpp's words of a refusal
    mean_kld: Estimate | None = None  # KL(f16 || type), nats; None for f16
    p99_kld: float | None = None
    top1_agreement: Estimate | None = None
    by_position: tuple[CachePosition, ...] = ()
    baseline_kld: Estimate | None = None  # KL(baseline with f16 || this file with this type)
    bytes_per_token: float | None = None
    prompt_speed: Interval | None = None
    generation_speed: Interval | None = None


class CacheMeasurement(Frozen):
    """The types of the KV cache on one file; the first result is that of f16."""

    label: str
    text: str  # name of the text
    n_ctx: int
    n_chunks: int
    n_tokens: int  # scored
    results: tuple[CacheTypeResult, ...]
    settings: CacheSettings
    threads: int
    n_gpu_layers: int
    duration_s: float = 0.0


class OpenVinoMeasurement(Frozen):
    """One file in OpenVINO beside the same file in llama.cpp, and beside the baseline in llama.cpp.

    All read the same chunks, so the divergences are of the same tokens. A file that OpenVINO cannot load has a
    `refusal` in place of results; what compares with the baseline is None beside itself.
    """

    label: str
    text: str  # name of the text
    n_ctx: int
    n_chunks: int
    n_tokens: int  # scored
    settings: OpenVinoSettings
    refusal: OpenVinoRefusal = ""
    detail: str = ""  # OpenVINO's words of a refusal
    versions: dict[str, str] = {}  # of OpenVINO's packages
    weight_bytes: dict[str, int] = {}  # bytes of what the weights became, by OpenVINO's element type
    computes: dict[str, str] = {}  # OpenVINO's properties: precision of the cache, of activations …
    llama_kld: Estimate | None = None  # KL(baseline || file in llama.cpp), nats
    baseline_kld: Estimate | None = None  # KL(baseline || file in OpenVINO)
    p99_baseline_kld: float | None = None
    baseline_top1: Estimate | None = None  # how often OpenVINO's most likely token is the baseline's
    runtime_kld: Estimate | None = None  # KL(file in llama.cpp || file in OpenVINO)
    p99_runtime_kld: float | None = None
    runtime_top1: Estimate | None = None
    greedy_same: float | None = None  # mean share of the generated tokens before the first that differs
    n_prompts: int = 0
    prompt_tokens_per_s: float | None = None  # of OpenVINO, at the pace of the median prompt
    generated_tokens_per_s: float | None = None
    llama_prompt_tokens_per_s: float | None = None
    llama_generated_tokens_per_s: float | None = None
    threads: int = 0
    duration_s: float = 0.0


class Similarity(Frozen):
    """Embeddings, or a reranker's scores, of one file beside the baseline's, on queries and documents of ours.

    Of each query the documents are ranked; what compares two rankings is a mean over queries. What compares with the
    baseline is None for the baseline itself; cosines are None for a reranker.
    """

    file: FileFacts
    purpose: Literal["embed", "rerank"]
    n_queries: int
    n_documents: int
    best: int  # documents that count as the first ones of a ranking
    ndcg: Estimate  # of these documents, by which of them answer the query; 0 to 1
    baseline_ndcg: Estimate | None = None
    mean_cosine: Estimate | None = None  # of a text's two embeddings
    p1_cosine: float | None = None
    least_cosine: float | None = None
    cosine_by_language: dict[str, float] = {}  # means
    kendall_tau: Estimate | None = None  # of two rankings of all documents; -1 to 1
    top1_agreement: Estimate | None = None  # share of queries with the same first document
    overlap: Estimate | None = None  # share of the first documents that both have; a reranker scores no more of them
    versions: dict[str, str] = {}
    duration_s: float = 0.0


class SpeedTest(Frozen):
    """One test in llama-bench's terms: `pp` reads `tokens` of a prompt, `tg` generates them, behind `depth` tokens.

    Values are means of the repeats after a warm-up, with Student's interval (None: one repeat). Joules are those that
    the machine's counters show, idle power and other programs included; None: not measurable here.
    """

    kind: Literal["pp", "tg"]
    tokens: int
    depth: int = 0
    batch: int = 512  # tokens computed at once
    repeats: int
    tokens_per_s: float
    interval: Interval | None = None
    joules_per_token: float | None = None
    joules_interval: Interval | None = None

    @property
    def name(self) -> str:
        """As llama-bench writes it: "pp512", "tg128 @ d4096"; another batch than its own is named."""
        at = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.tokens}{at}{f', ub {self.batch}' if self.batch != 512 else ''}"


class Speed(Frozen):
    """Speed and memory of one file; speeds are medians of the repeats after a warm-up.

    A pace is the speed beside the baseline's, both timed by turns in one run: 1.5 for half as fast again.
    """

    label: str
    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    prompt_spread: float  # (largest - smallest) / median over the repeats
    generated_spread: float
    load_s: float
    peak_memory_bytes: int  # resident, including mapped weights
    threads: int
    n_ctx: int
    n_gpu_layers: int
    settings: SpeedSettings
    tests: Annotated[tuple[SpeedTest, ...], Field(exclude_if=lambda value: not value)] = ()
    energy_source: Annotated[str, Field(exclude_if=lambda value: not value)] = ""  # counters, as "RAPL package-0"
    energy_missing: Annotated[str, Field(exclude_if=lambda value: not value)] = ""  # why there are none
    prompt_pace: Annotated[Interval | None, Field(exclude_if=lambda value: value is None)] = None
    generation_pace: Annotated[Interval | None, Field(exclude_if=lambda value: value is None)] = None


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
