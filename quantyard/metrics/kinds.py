"""The kind of a task's metric, which decides how its values and differences are formatted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quantyard.formatting.numbers import Kind
from quantyard.metrics.headline_metrics import is_perplexity_metric

if TYPE_CHECKING:  # a build has neither
    from quantyard.protocol.measurements import Comparison, Score

# Metrics of lm-evaluation-harness that may lie between 0 and 1 but are not shares.
_OWN_UNIT: Final = frozenset({"brier_score", "ter", "bleu", "likelihood_diff"})


def score_metric_kind(found: Score | Comparison) -> Kind:
    """The kind of a score, or of a comparison."""
    from quantyard.protocol.measurements import Score

    values = (found.result.value,) if isinstance(found, Score) else (found.baseline, found.value)
    return metric_kind(found.metric, *values)


def metric_kind(metric: str, *values: float) -> Kind:
    """"relative" for perplexities and bits per byte, "share" for values between 0 and 1, else "own unit"."""
    if is_perplexity_metric(metric):
        return "relative"
    is_share = metric.split(",", maxsplit=1)[0] not in _OWN_UNIT and all(0 <= value <= 1 for value in values)
    return "share" if is_share else "own unit"
