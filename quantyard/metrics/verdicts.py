"""What the verdicts mean, and what explains an open one: one form for report, terminal, card and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quantyard.formatting.numbers import format_count, format_forecast_count, format_margin, format_p_value
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement, Verdict

_LEAST: Final = 2  # comparisons that can be corrected for each other


def verdict_legend(report: EvalReport) -> Mapping[Verdict, str]:
    """Verdict → when it is given, as half a sentence of plain text."""
    n = n_corrected_comparisons(report)
    corrected = f", after Holm's correction for {format_count(n)} comparisons" if n >= _LEAST else ""
    return {
        "same": f"the whole 95 % interval lies within ±{format_margin(report.suite.margin)}",
        "worse": f"it does not, and the test of no difference has p < 0.05{corrected}",
        "better": "likewise, the other way round",
        "too few questions": "neither; the number beside it would settle it with a chance of 80 %",
        "no signal": "the baseline cannot be distinguished from guessing",
    }


def n_corrected_comparisons(report: EvalReport) -> int:
    """The comparisons that the verdicts were corrected for together; 0 in reports of 0.1.0, which corrected none."""
    return sum(c.adjusted_p is not None for m in report.measurements for c in _all_comparisons(m))


def _all_comparisons(found: Measurement) -> list[Comparison]:
    return [*found.comparisons, *(score.comparison for score in found.behaviours if score.comparison)]


def open_verdict_note(found: Comparison) -> str:
    """How many questions would settle it, after the p that left it open where the interval excludes 0:
    "p = 0.12; 44 would do". "" if the verdict is not open.
    """
    if not found.questions_needed:
        return ""
    is_outside = not found.delta.low <= 0 <= found.delta.high
    p = found.mcnemar_p if found.adjusted_p is None else found.adjusted_p
    why = f"p = {format_p_value(p)}; " if p is not None and is_outside else ""
    return f"{why}{format_forecast_count(found.questions_needed)} would do"
