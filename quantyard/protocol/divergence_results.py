"""The records of `divergence` and `domains`: how far the predictions of a file are from the baseline's.

Log-probabilities are natural logarithms, so divergences are nats.
"""

from typing import Annotated, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen
from quantyard.protocol.estimates import Estimate


class PerplexityParts(Frozen):
    """What of ln(PPL / baseline PPL) is the file's own, and what the backend adds; either may be negative."""

    whole: Estimate
    of_file: Estimate
    of_backend: Estimate


class DivergenceParts(Frozen):
    """What of a file's mean divergence is its own, and what the backend adds, over the first chunks of the text.

    llama.cpp multiplies quantized weights with activations rounded to 8 bits. `of_file` is the divergence of the
    weights alone: both files' weights as float32, with float32 activations. The rest depends on backend and build.
    """

    n_tokens: int  # scored
    whole: Estimate  # mean KLD of these tokens, as this backend computes both files
    of_file: Estimate  # "lost by the file"
    of_backend: Estimate  # "added by this backend": whole less of_file; may be negative
    ln_perplexity: Annotated[PerplexityParts | None, Field(exclude_if=lambda value: value is None)] = None


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
