"""Models of the facts of stages that measure or compare, as in `facts.py`."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from quantyard.protocol.cache_types import CacheName
from quantyard.protocol.facts import Amount, Count, Facts
from quantyard.protocol.foreign_findings import ForeignFinding
from quantyard.protocol.openvino import OpenVinoRefusal


class ForeignFacts(Facts):
    """The findings on a GGUF that somebody else made; none of them is a refusal, for which the stage fails."""

    findings: Annotated[list[ForeignFinding], Field(max_length=100)] = []
    bits_per_weight: Annotated[float, Field(ge=0, le=1024)] = 0.0
    types: Annotated[dict[str, Count], Field(max_length=100)] = {}  # tensor type → how many tensors have it
    # The largest error of a tensor against the source, in errors of ggml's own rounding to the same type.
    worst_error_ratio: Amount | None = None
    worst_tensor: Annotated[str, Field(max_length=100)] = ""


class EvaluateFacts(Facts):
    """The number of questions, and the metrics of each task."""

    n_questions: Count = 0
    tasks: dict[str, dict[str, float | None]] = {}


class DivergenceFacts(Facts):
    """The divergence of one file; None: not measured."""

    perplexity: Amount | None = None
    mean_kld: float | None = None  # rounding may make it slightly negative


class DomainsFacts(Facts):
    """The domain that one file diverges most on, of how many; None: it is the baseline, or nothing was measured."""

    n_domains: Count = 0
    worst: Annotated[str, Field(max_length=200)] | None = None
    worst_kld: float | None = None


class CacheFacts(Facts):
    """The divergence of each measured type of the KV cache from f16, in nats."""

    mean_kld: Annotated[dict[CacheName, float], Field(max_length=100)] = {}


class OpenVinoFacts(Facts):
    """The divergence of one file in OpenVINO from itself in llama.cpp, in nats; or why OpenVINO does not run it."""

    runtime_kld: float | None = None
    refusal: OpenVinoRefusal = ""


class BehaviourFacts(Facts):
    """The accuracy of one file in the scenarios of each kind, and why nothing was measured."""

    n_questions: Count = 0
    accuracy: Annotated[dict[str, Annotated[float, Field(ge=0, le=1)]], Field(max_length=20)] = {}
    reason: Annotated[str, Field(max_length=1000)] = ""


class SimilarityFacts(Facts):
    """How close one file is to the baseline; None: it is the baseline, or was not measured."""

    mean_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    kendall_tau: Annotated[float, Field(ge=-1, le=1)] | None = None
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None = None


class SpeedFacts(Facts):
    """Tokens per second; None: not measured."""

    prompt_tokens_per_s: Amount | None = None
    generated_tokens_per_s: Amount | None = None


class FileVerdicts(Facts):
    """The number of each verdict for one file of a report."""

    verdicts: dict[str, Count] = {}


class ReportFacts(Facts):
    """The verdicts of a report, by the label of the file."""

    files: dict[str, FileVerdicts] = {}


class ContractFacts(Facts):
    """The API test: the number of its checks, 0 if that was not recorded, and those that failed."""

    n_checks: Count = 0
    failed: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=200)] = []


# To have the facts of another stage checked: add a row.
MEASURING_FACTS: Final[Mapping[str, type[Facts]]] = {
    "verify_foreign": ForeignFacts, "evaluate": EvaluateFacts, "divergence": DivergenceFacts, "domains": DomainsFacts,
    "speed": SpeedFacts, "similarity": SimilarityFacts, "behaviour": BehaviourFacts, "cache": CacheFacts,
    "openvino": OpenVinoFacts, "report": ReportFacts, "contract": ContractFacts,
}  # fmt: skip
