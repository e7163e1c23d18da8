"""The facts of each stage, as the orchestrator reads them.

A stage may state more facts than its model names; they are kept in its record and never read. A fact that a model names
must have its type and range, or the whole result is refused. A fact that is absent has the default written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from quantyard.protocol.base import Sha256, StageResult
from quantyard.protocol.text_findings import TextFinding

_MAX_COUNT: Final = 2**53  # JSON readers keep integers exact so far
Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Amount = Annotated[float, Field(ge=0)]


class Facts(BaseModel):
    """The facts of any stage; None: not counted."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False, defer_build=True)

    n_params: Count | None = None

    @classmethod
    def read(cls, facts: object, where: str = "facts") -> Self:
        """Check the facts of a result or a record.

        Args:
            where: what an error calls them.

        Raises:
            ValueError: a fact is missing, has another type, or is out of its range. Names the fact.
        """
        try:
            return cls.model_validate(facts)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join((where, *map(str, first["loc"])))
            raise ValueError(f"{place}: {first['msg']}") from error


class CalibrateFacts(Facts):
    """The text that the matrix was made of."""

    text: Annotated[str, Field(max_length=20_000)] = ""
    text_sha256: Sha256 | None = None
    chunks: Count = 0
    chunk_tokens: Count = 0


class VerifyFacts(Facts):
    """What was found in one GGUF; `probes` and `chats` are None where they were not compared.

    `mismatches_allowed` stands in manifests of before there were findings.
    """

    bits_per_weight: Annotated[float, Field(ge=0, le=1024)]
    probes: Count | None = None
    chats: Count | None = None
    findings: Annotated[list[TextFinding], Field(max_length=100)] = []
    witnesses_that_differ: Annotated[list[str], Field(max_length=10)] = []
    mismatches_allowed: Annotated[list[str], Field(max_length=100)] = []


class EvaluateFacts(Facts):
    """How much was asked, and each task's metrics."""

    n_questions: Count = 0
    tasks: dict[str, dict[str, float | None]] = {}


class DivergenceFacts(Facts):
    """The divergence of one file; None: not measured."""

    perplexity: Amount | None = None
    mean_kld: float | None = None  # rounding may make it slightly negative


class SpeedFacts(Facts):
    """Tokens per second; None: not measured."""

    prompt_tokens_per_s: Amount | None = None
    generated_tokens_per_s: Amount | None = None


class FileVerdicts(Facts):
    """How often each verdict was reached for one file of a report."""

    verdicts: dict[str, Count] = {}


class ReportFacts(Facts):
    """The verdicts by the file's label."""

    files: dict[str, FileVerdicts] = {}


# To have the facts of another stage checked: add a row.
MODELS: Final[Mapping[str, type[Facts]]] = {
    "calibrate": CalibrateFacts, "verify": VerifyFacts, "evaluate": EvaluateFacts, "divergence": DivergenceFacts,
    "speed": SpeedFacts, "report": ReportFacts,
}  # fmt: skip


def check_stage_facts(stage: str, facts: object, where: str = "facts") -> None:
    """Check the facts of this stage.

    Raises:
        ValueError: see `Facts.read`.
    """
    MODELS.get(stage, Facts).read(facts, where)


def check_result_facts(result: StageResult, members: tuple[str, ...] = ()) -> None:
    """Check the facts of a result.

    Args:
        members: the files of a shared run, each of which has facts of its own.

    Raises:
        ValueError: see `Facts.read`.
    """
    if not members:
        check_stage_facts(result.stage, result.facts)
        return
    if set(result.facts) != set(members):
        raise ValueError("facts: they are not those of the files that were read")
    for member in members:
        check_stage_facts(result.stage, result.facts[member], f"facts.{member}")


def stage_facts_by_file(result: StageResult) -> dict[str, dict[str, JsonValue]]:
    """The facts of each file of a shared run, by label; {} for the result of one file."""
    return {label: dict(facts) for label, facts in result.facts.items() if isinstance(facts, dict)}
