"""What the orchestrator reads of the facts of a stage, field by field.

A stage may say more; that is kept as it is and never counted with. What is named here has its type and its range, or
the whole result is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantyard.protocol.base import Sha256, StageResult

_MAX_COUNT: Final = 2**53  # JSON readers keep integers exact so far
Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Amount = Annotated[float, Field(ge=0)]
F = TypeVar("F", bound="Facts")


class Facts(BaseModel):
    """Base: strict about what is named, silent about the rest."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False, defer_build=True)

    n_params: Count | None = None


class CalibrateFacts(Facts):
    """Which text the matrix was made of."""

    text: Annotated[str, Field(max_length=20_000)] = ""
    text_sha256: Sha256 | None = None
    chunks: Count = 0
    chunk_tokens: Count = 0


class VerifyFacts(Facts):
    """What was found of one GGUF."""

    bits_per_weight: Annotated[float, Field(ge=0, le=1024)]
    probes: Count = 0
    chats: Count = 0
    mismatches_allowed: Annotated[list[str], Field(max_length=100)] = []


class EvaluateFacts(Facts):
    """How much was asked, and each task's metrics."""

    n_questions: Count = 0
    tasks: dict[str, dict[str, float | None]] = {}


class DivergenceFacts(Facts):
    """Of one file; where several are read in step, one of these for each."""

    perplexity: Amount | None = None
    mean_kld: float | None = None  # rounding may leave it a little below nothing


class SpeedFacts(Facts):
    """Tokens per second."""

    prompt_tokens_per_s: Amount | None = None
    generated_tokens_per_s: Amount | None = None


class FileVerdicts(Facts):
    """One file of a report."""

    verdicts: dict[str, Count] = {}


class ReportFacts(Facts):
    """By the file's label."""

    files: dict[str, FileVerdicts] = {}


# To have the facts of another stage checked: add a row.
MODELS: Final[Mapping[str, type[Facts]]] = {
    "calibrate": CalibrateFacts, "verify": VerifyFacts, "evaluate": EvaluateFacts, "divergence": DivergenceFacts,
    "speed": SpeedFacts, "report": ReportFacts,
}  # fmt: skip


def facts_of(result: StageResult) -> Facts:
    """Its facts, checked.

    Raises:
        ValueError: one of them has another type, or is out of its range. Names it.
    """
    return _read(MODELS.get(result.stage, Facts), result.facts)


def bits_per_weight(result: StageResult) -> float:
    """What `verify` counted.

    Raises:
        ValueError: it does not say.
    """
    return _read(VerifyFacts, result.facts).bits_per_weight


def n_questions(result: StageResult) -> int:
    """How many questions `evaluate` asked.

    Raises:
        ValueError: its facts are not those of `evaluate`.
    """
    return _read(EvaluateFacts, result.facts).n_questions


def check_facts(result: StageResult, members: tuple[str, ...] = ()) -> None:
    """Check them. `members`: the files that were read in step, each with facts of its own.

    Raises:
        ValueError: see `facts_of`.
    """
    if not members:
        facts_of(result)
        return
    if set(result.facts) != set(members):
        raise ValueError("facts: they are not those of the files that were read")
    for member in members:
        _read(MODELS.get(result.stage, Facts), result.facts[member], f".{member}")


def _read(kind: type[F], facts: Any, where: str = "") -> F:
    try:
        return kind.model_validate(facts)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"facts{where}{'.' * bool(place)}{place}: {first['msg']}") from error
