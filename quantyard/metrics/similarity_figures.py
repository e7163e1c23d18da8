"""The figures of embeddings and rankings, each formatted once, for report, terminal, page and card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.formatting.numbers import DASH, format_cosine, format_percent
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import Measurement
from quantyard.protocol.similarity_results import Similarity


@dataclass(frozen=True)
class SimilarityFigure:
    """One figure: the head of its column, what it means, and its value; None where it was not measured."""

    name: str
    help: str
    value: Callable[[Similarity], float | None]
    show: Callable[[float], str] = format_cosine

    def shown(self, found: Similarity | None) -> str:
        """The formatted value."""
        value = self.value(found) if found else None
        return DASH if value is None else self.show(value)


def _similarity_of(name: str) -> Callable[[Similarity], float | None]:
    def value(found: Similarity) -> float | None:
        measured: Estimate | float | None = getattr(found, name)
        return measured.value if isinstance(measured, Estimate) else measured

    return value


# To add a figure: its field in `protocol.similarity_results.Similarity`, and a row.
SIMILARITY_FIGURES: Final = (
    SimilarityFigure("mean cosine", "of a text's embedding and the baseline's", _similarity_of("mean_cosine")),
    SimilarityFigure("p1 cosine", "one text in a hundred is further from the baseline", _similarity_of("p1_cosine")),
    SimilarityFigure("least cosine", "of the text that is furthest from the baseline", _similarity_of("least_cosine")),
    SimilarityFigure("Kendall τ", "agreement of two rankings of the documents; 1: the same order",
                     _similarity_of("kendall_tau")),
    SimilarityFigure("same first document", "share of queries", _similarity_of("top1_agreement"), format_percent),
    SimilarityFigure("same best 10", "share of the ten best documents that both rankings have",
                     _similarity_of("overlap"), format_percent),
    SimilarityFigure("nDCG@10", "of the ranking itself, by which documents answer the query", _similarity_of("ndcg")),
)  # fmt: skip


def similarity_figures(measurements: Sequence[Measurement]) -> tuple[SimilarityFigure, ...]:
    """Those that any of these files has; () for a model that generates text."""
    found = [m.similarity for m in measurements if m.similarity]
    return tuple(figure for figure in SIMILARITY_FIGURES if any(figure.value(one) is not None for one in found))


def similarity_sentence(found: Similarity | None) -> str:
    """How close a file is to the baseline, without a stop; "" for the baseline, or where nothing was measured."""
    if found is None or found.top1_agreement is None:
        return ""
    first = format_percent(found.top1_agreement.value)
    parts = []
    if found.mean_cosine:
        worst = min(found.cosine_by_language, key=lambda name: found.cosine_by_language[name], default="")
        least = f" (least in {worst}: {format_cosine(found.cosine_by_language[worst])})" if worst else ""
        parts.append(f"its embeddings have a mean cosine of {format_cosine(found.mean_cosine.value)} to the baseline's"
                     f"{least}")  # fmt: skip
    elif found.kendall_tau:
        tau = format_cosine(found.kendall_tau.value)
        parts.append(f"its rankings agree with the baseline's by a Kendall τ of {tau}")
    return f"{parts[0]}, and {first} of queries find the same first document" if parts else ""
