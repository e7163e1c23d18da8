"""Suites, and the requests of the stages that measure."""

import itertools
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, field_validator

from quantyard.protocol.base import Frozen, RelativeFolder, RelativePath, StageRequest
from quantyard.protocol.behaviour import BehaviourSettings
from quantyard.protocol.cache_types import CacheSettings
from quantyard.protocol.openvino import OpenVinoSettings
from quantyard.protocol.shard import RequestedShard

THOUGHT_TOKENS: Final = 2048
SuiteThoughts = Annotated[int, Field(ge=0, exclude_if=lambda value: value == THOUGHT_TOKENS)]
DEFAULT_SEED: Final = 1234  # lm-eval's own default for everything but Python's `random`

_USUAL_WEIGHTS_CHUNKS: Final = 2
_WeightsChunks = Annotated[int, Field(ge=0, exclude_if=lambda value: value == _USUAL_WEIGHTS_CHUNKS)]

# ---- suites ------------------------------------------------------------------------------------------


class TaskEntry(Frozen):
    """One entry of a suite: a task or group of lm-eval, or a local one from the suite's `include_path`."""

    task: str
    num_fewshot: Annotated[int, Field(ge=0)] | None = None  # None: the task's own number
    limit: Annotated[int, Field(ge=1)] | None = None  # questions per (sub)task; None: all


class DivergenceSettings(Frozen):
    """How divergence is measured, and on which text. `text` None: the prose that comes with Quantyard."""

    text: RelativePath | None = None  # a plain text file beside the suite
    n_ctx: Annotated[int, Field(ge=64)] = 512  # tokens of a chunk; llama-perplexity's default
    n_chunks: Annotated[int, Field(ge=0)] = 0  # 0: the whole text
    rolling: bool = False  # also measure lm-eval's rolling perplexity of the text, which doubles the time
    weights_chunks: _WeightsChunks = _USUAL_WEIGHTS_CHUNKS  # read again as float32: lost by the file; 0: not measured


class DomainSettings(Frozen):
    """How divergence is measured by domain: on which texts, and on how much of each.

    A domain is a file `<name>.jsonl` of documents or conversations. `texts` None: those that come with Quantyard. The
    domain `long` is read to its last position, the others up to `n_ctx`.
    """

    texts: RelativeFolder | None = None  # a folder beside the suite
    names: tuple[str, ...] = ()  # (): every domain of the folder
    tokens: Annotated[int, Field(ge=64)] = 4000  # read of each domain but `long`
    n_ctx: Annotated[int, Field(ge=64)] = 2048  # the longest document or conversation, in tokens
    # Ends of the buckets of positions in the domain `long`; its documents are read up to the last.
    positions: Annotated[tuple[Annotated[int, Field(ge=64)], ...], Field(min_length=1, max_length=20)] = (
        512, 2048, 8192, 16384,
    )  # fmt: skip
    long_documents: Annotated[int, Field(ge=0)] = 2  # of the domain `long`; 0 leaves it out

    @field_validator("positions")
    @classmethod
    def _positions_rise(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in itertools.pairwise(value)):
            raise ValueError("each must be larger than the one before")
        return value


def last_long_position(positions: Sequence[int], n_ctx_train: int | None) -> int:
    """The last position that the domain `long` is read to; `n_ctx_train` None: the model's context is not known."""
    return min(positions[-1], n_ctx_train) if n_ctx_train else positions[-1]


class SpeedSettings(Frozen):
    """How speed is measured: like llama-bench's pp512 and tg128, with fewer generated tokens.

    Each depth (llama-bench's `-d`) and batch (`-ub`) is a test of its own; the first of either gives the speeds that
    files are compared by. With `beside_baseline` file and baseline are timed by turns in one run, too.
    """

    prompt_tokens: Annotated[int, Field(ge=1)] = 512
    generated_tokens: Annotated[int, Field(ge=1)] = 64
    repeats: Annotated[int, Field(ge=1)] = 5
    depths: Annotated[  # of context, beside none
        tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=20, exclude_if=lambda value: not value)
    ] = ()
    batches: Annotated[  # of tokens computed at once, beside 512
        tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(max_length=20, exclude_if=lambda value: not value)
    ] = ()
    beside_baseline: Annotated[bool, Field(exclude_if=lambda value: not value)] = False


class SimilaritySettings(Frozen):
    """How embeddings and rankings are compared, on the queries and documents that come with Quantyard."""

    best: Annotated[int, Field(ge=1)] = 10  # documents of a ranking whose overlap and gain are measured


class Suite(Frozen):
    """What is measured: tasks, divergence, domains, speed. The built-in suites are in `eval/suites/*.yaml`."""

    name: str
    description: str = ""
    tasks: tuple[TaskEntry, ...] = ()
    include_path: RelativeFolder | None = None  # folder of local lm-eval tasks, beside the suite file
    needs_network: bool = True  # False: all tasks are local, so data sets need not be fetched
    apply_chat_template: bool = False  # render questions with the GGUF's own chat template
    thought_tokens: SuiteThoughts = THOUGHT_TOKENS  # before an answer, of a model that thinks in its chat template
    seed: Annotated[int, Field(ge=0)] = DEFAULT_SEED
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01  # scores that differ by less count as the same
    divergence: DivergenceSettings | None = DivergenceSettings()
    domains: Annotated[DomainSettings | None, Field(exclude_if=lambda value: value is None)] = None
    speed: SpeedSettings | None = SpeedSettings()
    behaviour: Annotated[BehaviourSettings | None, Field(exclude_if=lambda value: value is None)] = None
    cache: Annotated[CacheSettings | None, Field(exclude_if=lambda value: value is None)] = None  # None: not measured
    openvino: Annotated[OpenVinoSettings | None, Field(exclude_if=lambda value: value is None)] = None  # as `cache`
    # Of a model that embeds texts or ranks documents, in place of the others above; the plan sets it.
    similarity: Annotated[SimilaritySettings | None, Field(exclude_if=lambda value: value is None)] = None


# ---- requests ----------------------------------------------------------------------------------------


class Runtime(Frozen):
    """How llama.cpp runs the measured model."""

    threads: Annotated[int, Field(ge=0)] = 0  # 0: one per physical core
    n_gpu_layers: Annotated[int, Field(ge=-1)] = 0  # -1: all
    max_length: Annotated[int, Field(ge=0)] = 0  # longest request in tokens; 0: the model's, at most 4096


class DatasetsRequest(StageRequest):
    """Fetch the data sets of these tasks into `/out/files`; inputs: `suite` if the suite has tasks of its own.

    The only stage of a measurement with a network.
    """

    stage: Literal["datasets"] = "datasets"
    tasks: tuple[str, ...]
    include_path: RelativeFolder | None = None
    allow_unsafe_code: bool = False
    endpoint: str | None = None
    not_in_key: ClassVar[frozenset[str]] = frozenset({"endpoint"})


class EvaluateRequest(StageRequest):
    """Run the suite's tasks on one GGUF; inputs: `model`, and `datasets` and `suite` if the suite needs them.

    Leaves `evaluation.json` (an `Evaluation`) and, per entry of the suite, lm-eval's own results and samples; a shard
    leaves the answers to its units of questions.
    """

    stage: Literal["evaluate"] = "evaluate"
    label: str  # the quant's name, or the baseline's type
    model_file: RelativePath = "model.gguf"
    tasks: tuple[TaskEntry, ...]
    include_path: RelativeFolder | None = None
    apply_chat_template: bool = False
    thought_tokens: Annotated[int, Field(ge=0, exclude_if=lambda value: not value)] = 0
    seed: int = DEFAULT_SEED
    allow_unsafe_code: bool = False
    runtime: Runtime = Runtime()
    shard: RequestedShard = None
    not_in_key: ClassVar[frozenset[str]] = frozenset({"runtime.threads"})


class ComparedFileRequest(StageRequest):
    """Measure `/in/model`, beside `/in/baseline` if there is one."""

    label: str
    model_file: RelativePath = "model.gguf"
    baseline_file: RelativePath | None = None
    runtime: Runtime = Runtime()


class SharedMember(Frozen):
    """One more file of a shared run; its input is `model-<label>`."""

    label: str
    model_file: RelativePath


class SharedBaselineRequest(ComparedFileRequest):
    """Compare `/in/model` with `/in/baseline`, if there is one, on the same tokens. Leaves `<stage>.json`.

    Several such requests can share one run, which decodes the baseline only once: `others` names the other files, and
    `baseline_label` asks for the baseline's own numbers too. The run then leaves `<label>/<stage>.json` for each. The
    store keeps each result under the key of the request for that file alone.
    """

    others: tuple[SharedMember, ...] = ()
    baseline_label: str = ""
    shard: RequestedShard = None
    not_in_key: ClassVar[frozenset[str]] = frozenset({"runtime.threads", "others", "baseline_label"})

    @property
    def is_joined(self) -> bool:
        """Whether this is a shared run of several requests."""
        return bool(self.others or self.baseline_label)

    @property
    def asked_labels(self) -> tuple[str, ...]:
        """The labels of a run's results: the baseline's first, if it has one."""
        asked = (self.baseline_label, self.label, *(member.label for member in self.others))
        return tuple(label for label in asked if label)


class DivergenceRequest(SharedBaselineRequest):
    """Perplexity of `/in/model` and its divergence from `/in/baseline`, if there is one, on the text (`/in/suite`
    or our prose). Leaves `divergence.json` (a `Divergence`).
    """

    stage: Literal["divergence"] = "divergence"
    settings: DivergenceSettings = DivergenceSettings()


class DomainsRequest(SharedBaselineRequest):
    """Divergence of `/in/model` from `/in/baseline`, if there is one, by domain, on the texts (in `/in/suite`, or
    ours). Leaves `domains.json` (a `Domains`). A domain that was measured before a kill is not measured again.
    """

    stage: Literal["domains"] = "domains"
    settings: DomainSettings = DomainSettings()


class SpeedRequest(ComparedFileRequest):
    """Time `/in/model` on this machine, by turns with `/in/baseline` if there is one. Leaves `speed.json` (a
    `Speed`).
    """

    stage: Literal["speed"] = "speed"
    baseline_file: Annotated[RelativePath | None, Field(exclude_if=lambda value: value is None)] = None
    settings: SpeedSettings = SpeedSettings()
    machine: str = ""  # CPU and cores of the engine's machine, so that each machine has its own measurement


class CacheRequest(ComparedFileRequest):
    """Measure `/in/model` with each type of the KV cache, beside itself with f16 and beside `/in/baseline` if there is
    one, on the text (`/in/suite` or ours). Leaves `cache.json` (a `CacheMeasurement`).
    """

    stage: Literal["cache"] = "cache"
    settings: CacheSettings = CacheSettings()
    machine: str = ""  # as in `SpeedRequest`


class OpenVinoRequest(ComparedFileRequest):
    """Run `/in/model` in OpenVINO and in llama.cpp, beside `/in/baseline` in llama.cpp if there is one, on the text
    (`/in/suite` or ours). Leaves `openvino.json` (an `OpenVinoMeasurement`). No image holds OpenVINO: the stage runs
    with ENGINE=local alone, in `.venv-local`, and starts a process of `.venv-openvino`.
    """

    stage: Literal["openvino"] = "openvino"
    settings: OpenVinoSettings = OpenVinoSettings()
    machine: str = ""  # as in `SpeedRequest`


class SimilarityRequest(ComparedFileRequest):
    """Compare the embeddings, or the scores, of `/in/model` with those of `/in/baseline` if there is one. Leaves
    `similarity.json` (a `Similarity`).
    """

    stage: Literal["similarity"] = "similarity"
    settings: SimilaritySettings = SimilaritySettings()
    not_in_key: ClassVar[frozenset[str]] = frozenset({"runtime.threads"})


class ReportRequest(StageRequest):
    """Compare every file with the baseline; inputs: `evaluate-<label>`, `divergence-<label>`, `domains-<label>`,
    `behaviour-<label>`, `speed-<label>`, `cache-<label>`, `openvino-<label>`, `similarity-<label>`.

    Leaves `report.json` (an `EvalReport`), `report.md` and the plots.
    """

    stage: Literal["report"] = "report"
    title: str  # the model's name
    suite: Suite
    baseline: str  # its label
    labels: tuple[str, ...]  # the baseline's first
    mix_nodes: Annotated[bool, Field(exclude_if=lambda value: not value)] = False  # compare speeds of unlike machines
