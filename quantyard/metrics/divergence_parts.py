"""What of a file's divergence is the file's own, and what this backend adds: one form for report, terminal, card, page.

llama.cpp multiplies quantized weights with activations of 8 bits, which is no loss of the file: another build or
backend adds something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from quantyard.formatting.numbers import (
    DASH,
    format_change,
    format_change_interval,
    format_count,
    format_delta_interval,
    format_kld,
    format_kld_interval,
)
from quantyard.metrics.intervals import estimate_interval, mapped_interval
from quantyard.protocol.divergence_results import Divergence, DivergenceParts
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.measurements import Measurement

FILE_PART: Final = "lost by the file"
BACKEND_PART: Final = "added by this backend"
FILE_PPL: Final = "ΔPPL of the file"


def file_divergence(found: Divergence | None) -> Estimate | None:
    """The divergence of the file's weights alone, in nats; None where it is not known."""
    return found.parts.of_file if found and found.parts else None


def file_divergence_shown(found: Divergence | None) -> str:
    """With its interval: "0.00097 (0.00090 to 0.00104)"."""
    part = file_divergence(found)
    return str(format_kld_interval(estimate_interval(part))) if part else DASH


def backend_divergence_shown(found: Divergence | None) -> str:
    """With its interval and sign."""
    if found is None or found.parts is None:
        return DASH
    return str(format_delta_interval(estimate_interval(found.parts.of_backend), "own unit"))


def perplexity_part(found: Divergence | None, part: Literal["of_file", "of_backend"]) -> Interval | None:
    """The change of perplexity by the file's weights alone, or by this backend, with its interval; None: not known."""
    parts = found.parts.ln_perplexity if found and found.parts else None
    return mapped_interval(estimate_interval(getattr(parts, part)), math.expm1) if parts else None


def file_perplexity_shown(found: Divergence | None) -> str:
    """The change of perplexity by the file's weights alone, with its interval: "+0.45 % (+0.21 to +0.69)"."""
    change = perplexity_part(found, "of_file")
    return str(format_change_interval(change)) if change else DASH


def divergence_parts_sentence(parts: DivergenceParts) -> str:
    """"of 0.00325 over 510 tokens the file lost 0.000968 and this backend added +0.0023"."""
    added = format_delta_interval(estimate_interval(parts.of_backend), "own unit").value
    whole = f"of {format_kld(parts.whole.value)} over {format_count(parts.n_tokens)} tokens"
    return f"{whole} the file lost {format_kld(parts.of_file.value)} and this backend added {added}"


def perplexity_parts_sentence(parts: DivergenceParts) -> str:
    """"of ΔPPL +0.75 % over 510 tokens the file lost +0.45 % (+0.21 to +0.69) and this backend added +0.30 %"; "" where
    it is not known.
    """
    if parts.ln_perplexity is None:
        return ""
    whole, own, added = (
        mapped_interval(estimate_interval(part), math.expm1)
        for part in (parts.ln_perplexity.whole, parts.ln_perplexity.of_file, parts.ln_perplexity.of_backend)
    )
    if whole is None or own is None or added is None:  # a perplexity without bound
        return ""
    return (
        f"of ΔPPL {format_change(whole.value)} over {format_count(parts.n_tokens)} tokens the file lost "
        f"{format_change_interval(own)} and this backend added {format_change_interval(added)}"
    )


def divergence_parts_notes(found: Sequence[Measurement]) -> Iterator[str]:
    """How to read the parts, what computed them, and why those of some files are not known."""
    measured = [m.divergence for m in found if m.divergence]
    if known := next((d for d in measured if d.parts), None):
        assert known.parts is not None
        yield (
            f"KLD in nats over the first {format_count(known.parts.n_tokens)} tokens: {FILE_PART}, with the weights of "
            f"both files as float32; {BACKEND_PART}, {known.backend or 'llama.cpp'}: the rest, which another build or "
            "backend changes. Files are compared by the first; limits judge the whole, as it is served."
        )
    for m in found:
        parts = m.divergence.parts if m.divergence else None
        if parts and (said := perplexity_parts_sentence(parts)):
            yield f"{m.file.label}: {said}."
        if m.divergence and (missing := m.divergence.parts_missing):
            yield f"{m.file.label}: what the file lost by itself is not known ({missing.reason}): {missing.finding}."
