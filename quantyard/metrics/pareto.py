"""The Pareto front of many files: those that no other file beats in size, quality and speed.

The only definition: the report and its plot, the page, the terminal and `choose` use it. It compares measured values
without intervals, so that a reader can check it with the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from quantyard.formatting.numbers import format_change, format_kld, format_rough_percent, format_tokens_per_s
from quantyard.metrics.divergence_parts import file_divergence
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import EvalReport, Measurement

Metric = Literal["mean KLD", "KLD of the file", "ΔPPL", "cosine distance", "rank distance"]
_OF_BASELINE: Final = Estimate(value=0.0, stderr=0.0)


@dataclass(frozen=True)
class ParetoEntry:
    """One file.

    Attributes:
        loss: what quantization cost, in any unit; lower is better.
        tokens_per_s: generated tokens/s; None: not measured.
        shown: the loss, formatted.
    """

    label: str
    size_bytes: float
    loss: float
    tokens_per_s: float | None = None
    shown: str = ""


# ---- the definition ----------------------------------------------------------------------------------


def pareto_beats(one: ParetoEntry, other: ParetoEntry) -> bool:
    """Whether `one` is at least as small, as good and as fast as `other`, and better in one of the three."""
    mine, theirs = _pareto_costs(one), _pareto_costs(other)
    return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def pareto_beaten_by(entries: Iterable[ParetoEntry]) -> dict[str, tuple[str, ...]]:
    """Label → the files that beat it; empty for a file of the front. Speed counts if it was measured for all files."""
    found = tuple(entries)
    if any(e.tokens_per_s is None for e in found):
        found = _pareto_without_speed(found)
    return {e.label: tuple(o.label for o in found if pareto_beats(o, e)) for e in found}


def pareto_fast_alone(entries: Sequence[ParetoEntry]) -> tuple[str, ...]:
    """The files that are on the front only for their speed: another file is at most as large and at least as good."""
    whole, slow = pareto_beaten_by(entries), pareto_beaten_by(_pareto_without_speed(entries))
    return tuple(label for label, others in slow.items() if others and not whole[label])


def _pareto_costs(entry: ParetoEntry) -> tuple[float, float, float]:
    """The values to compare; lower is better."""
    return entry.size_bytes, entry.loss, -(entry.tokens_per_s or 0.0)


def _pareto_without_speed(entries: Sequence[ParetoEntry]) -> tuple[ParetoEntry, ...]:
    return tuple(replace(e, tokens_per_s=None) for e in entries)


# ---- the files of a report ---------------------------------------------------------------------------


def pareto_metric(report: EvalReport) -> Metric:
    """The metric of quality: KL divergence, of the files alone where that is known of all of them; perplexity if
    nothing else was measured; of embeddings 1 less the mean cosine, of a reranker's scores 1 less Kendall's τ.
    """
    similar = [m.similarity for m in report.measurements if m.similarity]
    if similar:
        return "cosine distance" if similar[0].purpose == "embed" else "rank distance"
    found = [m.divergence for m in report.measurements if m.divergence]
    only_perplexity = any(ppl_change_interval(d) for d in found) and all(d.mean_kld is None for d in found)
    compared = [d for d in found if d.mean_kld]
    if compared and all(file_divergence(d) for d in compared):
        return "KLD of the file"
    return "ΔPPL" if only_perplexity else "mean KLD"


def pareto_quality(report: EvalReport, found: Measurement, metric: Metric) -> Estimate | None:
    """KL divergence in nats, or ln(PPL / baseline PPL), or the distance of embeddings or rankings; 0 for the baseline,
    None if it was not measured.
    """
    if metric in ("cosine distance", "rank distance"):
        return _pareto_distance(report, found, metric)
    divergence = found.divergence
    if divergence is None:
        return None
    if found.file.label == report.baseline:
        return _OF_BASELINE
    if metric == "KLD of the file":
        return file_divergence(divergence)
    return divergence.mean_kld if metric == "mean KLD" else divergence.ln_perplexity_ratio


def _pareto_distance(report: EvalReport, found: Measurement, metric: Metric) -> Estimate | None:
    similar = found.similarity
    if similar is None:
        return None
    if found.file.label == report.baseline:
        return _OF_BASELINE
    close = similar.mean_cosine if metric == "cosine distance" else similar.kendall_tau
    return Estimate(value=1 - close.value, stderr=close.stderr) if close else None


def pareto_entries(report: EvalReport) -> tuple[ParetoEntry, ...]:
    """The files beside the baseline whose size and quality were measured, in the report's order."""
    metric = pareto_metric(report)
    qualities = ((m, pareto_quality(report, m, metric)) for m in report.measurements)
    return tuple(
        ParetoEntry(m.file.label, m.file.size_bytes, quality.value, _pareto_speed(m),
                    pareto_shown(quality.value, metric))
        for m, quality in qualities if quality and m.file.size_bytes and m.file.label != report.baseline
    )  # fmt: skip


def _pareto_speed(m: Measurement) -> float | None:
    return m.speed.generated_tokens_per_s if m.speed else None


def pareto_shown(value: float, metric: Metric) -> str:
    """A quality, formatted in its metric."""
    return format_change(math.expm1(value)) if metric == "ΔPPL" else format_kld(value)


# ---- sentences ---------------------------------------------------------------------------------------


def pareto_standings(entries: Sequence[ParetoEntry], metric: str) -> dict[str, str]:
    """Each beaten file → "beaten by IQ4_XS: 4.5 % smaller, mean KLD 0.041 against 0.058, 64.2 against 61.3 tokens/s";
    also the files that are on the front only for their speed. Other files of the front are not in it.
    """
    by_label = {entry.label: entry for entry in entries}
    said = {}
    for label, others in pareto_beaten_by(entries).items():
        if len(others) == 1:
            said[label] = f"beaten by {others[0]}: {_pareto_comparison(by_label[others[0]], by_label[label], metric)}"
        elif others:
            winners = f"{', '.join(others[:-1])} and {others[-1]}"
            said[label] = f"beaten by {winners}: at least as small, as accurate and as fast"
    return said | dict.fromkeys(pareto_fast_alone(entries), "on the front for its speed alone")


def _pareto_comparison(winner: ParetoEntry, loser: ParetoEntry, metric: str) -> str:
    smaller = 1 - winner.size_bytes / loser.size_bytes
    parts = [f"{format_rough_percent(smaller)} smaller" if smaller else "as large"]
    parts.append(f"{metric} {winner.shown} against {loser.shown}")
    if winner.tokens_per_s and loser.tokens_per_s:
        rates = (format_tokens_per_s(entry.tokens_per_s or 0.0) for entry in (winner, loser))
        parts.append(f"{' against '.join(rates)} tokens/s")
    return ", ".join(parts)
