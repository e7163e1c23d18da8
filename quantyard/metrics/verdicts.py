"""What explains an open verdict, on the card and on the page."""

from __future__ import annotations

from quantyard.formatting.numbers import format_forecast_count, format_p_value
from quantyard.protocol.measurements import Comparison


def open_verdict_note(found: Comparison) -> str:
    """How many questions would decide, after McNemar's p where the interval excludes 0 and p alone leaves it open:
    "p = 0.12; 44 would do". "" if the verdict is not open.
    """
    if not found.questions_needed:
        return ""
    is_outside = not found.delta.low <= 0 <= found.delta.high
    p = f"p = {format_p_value(found.mcnemar_p)}; " if found.mcnemar_p is not None and is_outside else ""
    return f"{p}{format_forecast_count(found.questions_needed)} would do"
