"""The API test: the request of the stage `contract`, and its report.

Durations are in seconds; rates are proportions, 0 to 1, with Wilson's 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, JsonValue

from quantyard.protocol.base import Frozen, JsonObject, RelativePath, StageRequest

CONTRACT_REPORT_VERSION: Final = 1
CheckStatus = Literal["passed", "failed", "not supported"]
AnswerKind = Literal["valid", "cut", "not JSON", "invalid", "refused"]
Rate = Annotated[float, Field(ge=0, le=1)]


def protocol_bindings_config(
    models: Sequence[Path], port: int, key: str, *, n_ctx: int, threads: int = 0, n_gpu_layers: int = 0,
    verbose: bool = True,
) -> dict[str, JsonValue]:
    """The configuration file of llama-cpp-python's server on loopback (llama_cpp/server/settings.py).

    Args:
        n_ctx: tokens; 0: the model's training context.
        threads: 0: the server's default.
    """
    of_threads: dict[str, JsonValue] = {"n_threads": threads, "n_threads_batch": threads} if threads else {}
    served: list[JsonValue] = [
        {
            "model": str(path), "model_alias": path.stem, "n_ctx": n_ctx, "n_gpu_layers": n_gpu_layers,
            "verbose": verbose, **of_threads,
        }
        for path in models
    ]
    return {"host": "127.0.0.1", "port": port, "api_key": key, "models": served}


class ContractRequest(StageRequest):
    """Serve `/in/model` on loopback and check every promise of the API. Leaves `report.json` (a `ContractReport`)."""

    stage: Literal["contract"] = "contract"
    label: str  # the quant's name, or the baseline's type
    model_file: RelativePath = "model.gguf"
    threads: Annotated[int, Field(ge=0)] = 0  # 0: the server's default
    n_ctx: Annotated[int, Field(ge=512)] = 4096  # tokens per client; the server image decides this itself
    parallel: Annotated[int, Field(ge=1)] = 4  # clients answered at once; the server image decides this itself
    load_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads", "load_timeout_s"})


class SchemaFailure(Frozen):
    """One JSON schema whose answer did not conform, and why."""

    schema_name: str
    kind: AnswerKind  # cut: by max_tokens; refused: the server refused the request
    finding: str


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
    """The results of all checks of one served model, in the order of the table in `server/api_checks/checks.py`."""

    version: Literal[1] = CONTRACT_REPORT_VERSION
    label: str = ""
    server: str  # what answers: "llama-server b11669", "llama-cpp-python 0.3.36", "unknown"
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
