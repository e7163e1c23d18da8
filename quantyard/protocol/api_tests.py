"""The API test: the request of the stage `contract`, and its report.

Durations are in seconds; rates are proportions, 0 to 1, with Wilson's 95 % interval.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen, JsonObject, RelativePath, StageRequest
from quantyard.protocol.cache_types import DEFAULT_CACHE, CacheName
from quantyard.protocol.predictions import FilePredictions

CONTRACT_REPORT_VERSION: Final = 1
AS_MEASURED: Final = "as-measured"  # the check whose finding is told also where it passes
CheckStatus = Literal["passed", "failed", "not supported"]
AnswerKind = Literal["valid", "cut", "not JSON", "invalid", "refused"]
Rate = Annotated[float, Field(ge=0, le=1)]


class LocalModel(Frozen):
    """One GGUF that the local server serves, or the first file of one in several parts."""

    path: Path  # absolute
    name: str  # its id in the API
    # Absolute; of what reads pictures or sound for it.
    projector: Annotated[Path | None, Field(exclude_if=lambda value: value is None)] = None


class LocalServerSettings(Frozen):
    """The settings file of the local server (server/local/server.py)."""

    port: Annotated[int, Field(ge=1, le=65535)]  # of 127.0.0.1
    key: str  # that clients must show
    models: Annotated[tuple[LocalModel, ...], Field(min_length=1)]  # the first is loaded at the start
    context_size: Annotated[int, Field(ge=0)] = 0  # tokens of all requests; 0: as the model was trained
    parallel: Annotated[int, Field(ge=1)] = 4  # requests of one model answered at once; others wait
    kept: Annotated[int, Field(ge=1)] = 4  # models that stay loaded
    threads: Annotated[int, Field(ge=0)] = 0  # 0: one for each physical core
    n_gpu_layers: int = 0
    cache_type: CacheName = DEFAULT_CACHE  # of the KV cache
    # Whether a model whose process was killed is loaded again; else the server ends, as when llama.cpp crashes.
    reloads: bool = False


class ContractRequest(StageRequest):
    """Serve `/in/model`, with the projector in `/in/projector` if there is one, on loopback and check every promise of
    the API. What the server predicts is compared with `measured`, or with the evaluation in `/in/measured`. Leaves
    `report.json` (a `ContractReport`).
    """

    stage: Literal["contract"] = "contract"
    label: str  # the quant's name, or the baseline's type
    model_file: RelativePath = "model.gguf"
    has_projector: Annotated[bool, Field(exclude_if=lambda value: not value)] = False  # one that reads more than text
    threads: Annotated[int, Field(ge=0)] = 0  # 0: the server's default
    has_measurement: Annotated[bool, Field(exclude_if=lambda value: not value)] = False  # in /in/measured
    # What an earlier measurement of the file predicted.
    measured: Annotated[FilePredictions | None, Field(exclude_if=lambda value: value is None)] = None
    n_ctx: Annotated[int, Field(ge=512)] = 4096  # tokens per client; the server image decides this itself
    parallel: Annotated[int, Field(ge=1)] = 4  # clients answered at once; the server image decides this itself
    load_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads", "load_timeout_s"})


class SchemaFailure(Frozen):
    """One JSON schema whose answer did not conform, and why."""

    schema_name: str
    kind: AnswerKind  # cut: by max_tokens; refused: the server refused the request
    finding: str


# Share of answers that have to conform to their JSON schema. The API test compares the rate with it, the gate (its
# default budgets hold the same number) the whole interval.
SCHEMA_LIMIT: Final = 0.9


class SchemaRate(Frozen):
    """How many answers conformed to their JSON schema."""

    n: int
    n_valid: int
    n_cut: int
    rate: Rate
    low: Rate
    high: Rate
    gate: Rate  # the rate from which the check passes
    request_form: str  # the `response_format.type` of the requests
    failures: tuple[SchemaFailure, ...] = ()


class CheckRecord(Frozen):
    """The result of one check."""

    name: str
    promise: str
    status: CheckStatus
    finding: str  # one line, with values
    duration_s: float
    facts: JsonObject = Field(default_factory=dict)


class ContractReport(Frozen):
    """The results of all checks of one served model, in the order of the table in `server/api_checks/table.py`."""

    version: Literal[1] = CONTRACT_REPORT_VERSION
    label: str = ""
    server: str  # what answers: "llama-server b11669", "xllamacpp 2026.10.11549 (llama.cpp b11549)", "unknown"
    model: str  # as the server lists it
    checks: tuple[CheckRecord, ...]
    schemas: SchemaRate | None = None  # None: the check failed before it had a rate
    duration_s: float

    def with_status(self, status: CheckStatus) -> tuple[CheckRecord, ...]:
        """The checks with this status."""
        return tuple(check for check in self.checks if check.status == status)

    @property
    def passed(self) -> bool:
        """Whether no check failed; "not supported" does not count as failed."""
        return bool(self.checks) and not self.with_status("failed")
