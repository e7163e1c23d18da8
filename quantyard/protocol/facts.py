"""Models of the facts of each stage that the orchestrator reads.

A stage may state more facts than its model has; they are kept in its record and never read. A fact of the model must
have the right type and range, or the whole result is refused. A missing fact gets the default written here.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantyard.formats.purpose import Pooling, Purpose
from quantyard.formatting.numbers import format_cosine
from quantyard.protocol.base import Sha256
from quantyard.protocol.embeddings import ScriptAgreement
from quantyard.protocol.text_findings import TextFinding

_MAX_COUNT: Final = 2**53  # integers up to here are exact in every JSON reader
Count = Annotated[int, Field(ge=0, le=_MAX_COUNT)]
Amount = Annotated[float, Field(ge=0)]


class Facts(BaseModel):
    """The facts of any stage; None: not known."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False, defer_build=True)

    n_params: Count | None = None

    @classmethod
    def read(cls, facts: object, where: str = "facts") -> Self:
        """Check the facts of a result or a record.

        Args:
            where: the name of the facts in an error.

        Raises:
            ValueError: a fact is missing, has another type, or is out of range; the message names it.
        """
        try:
            return cls.model_validate(facts)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join((where, *map(str, first["loc"])))
            raise ValueError(f"{place}: {first['msg']}") from error


class ArchitectureFacts(Facts):
    """What a stage that reads a model calls its architecture: a class of Transformers, or the name in a GGUF."""

    architecture: str | None = None


class ConvertFacts(Facts):
    """What is worth knowing of a conversion, a sentence each."""

    notes: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=20)] = []


class CalibrateFacts(Facts):
    """The text that the importance matrix was computed from."""

    text: Annotated[str, Field(max_length=20_000)] = ""
    text_sha256: Sha256 | None = None
    chunks: Count = 0
    chunk_tokens: Count = 0


class TwinFacts(Facts):
    """What the twin showed; numbers are None where there was none. builder/twin.py says what each status means."""

    status: Literal["proved", "limited", "known", "differs", "unproved"]
    finding: Annotated[str, Field(max_length=2000)]  # one sentence or two
    compared: Literal["logit", "embedding", "score"] = "logit"
    max_delta: Amount | None = None  # of two of them
    spread: Amount | None = None  # standard deviation of the original's
    same_top: Annotated[float, Field(ge=0, le=1)] | None = None
    mean_kld: float | None = None
    right_up_to_tokens: Count | None = None
    first_wrong_layer: Count | None = None  # from 0; the number of layers: all agree, and what follows does not
    allowed: bool = False  # it differs, and was allowed to
    lacks_package: bool = False  # unproved, because a package is not installed: it is tried again in every build


class ProjectorFacts(Facts):
    """What reads pictures or sound. Of its tensors, those with the source's values, in another order, or computed."""

    media: Annotated[list[Literal["vision", "audio"]], Field(min_length=1, max_length=2)]
    n_same: Count = 0
    n_moved: Count = 0
    n_computed: Count = 0
    q8_0_error: Amount | None = None  # the largest relative RMS difference of a tensor; None: none can be Q8_0


class VerifyFacts(Facts):
    """The findings on one GGUF; `probes` and `chats` are None if they were not compared.

    Manifests from before there were findings have `mismatches_allowed`.
    """

    bits_per_weight: Annotated[float, Field(ge=0, le=1024)]
    types: Annotated[dict[str, Count], Field(max_length=100)] = {}  # tensor type → how many tensors have it
    probes: Count | None = None
    chats: Count | None = None
    chat_template: bool | None = None  # None: written before it was asked
    architecture: str = ""
    findings: Annotated[list[TextFinding], Field(max_length=100)] = []
    witnesses_that_differ: Annotated[list[str], Field(max_length=10)] = []
    purpose: Purpose = "generate"
    pooling: Pooling = "none"
    embeddings_not_compared: Annotated[str, Field(max_length=1000)] = ""  # why; "" if they were, or there are none
    scripts: Annotated[list[ScriptAgreement], Field(max_length=100)] = []  # of embeddings or scores with the original's
    scripts_below: Annotated[list[str], Field(max_length=100)] = []  # further from the original than English
    mismatches_allowed: Annotated[list[str], Field(max_length=100)] = []


    @property
    def embeddings_sentences(self) -> Iterator[tuple[str, bool]]:
        """What was found of embeddings or scores, a sentence each without its stop, and whether it is a warning."""
        if self.embeddings_not_compared:
            yield f"Not compared with the original: {self.embeddings_not_compared}", True
        by_script = {found.script: found for found in self.scripts}
        what = "correlation with the original's scores" if self.purpose == "rerank" else "mean cosine to the original's"
        if english := by_script.get("english"):
            yield f"On English {what} {format_cosine(english.agreement)}", False
        for script in self.scripts_below:
            if found := by_script.get(script):
                yield f"script:{script}: {what} {format_cosine(found.agreement)}", True
