"""The marks of the plots: each colour goes with a shape of its own. Paths are drawn around 0, 0 in pixels."""

from __future__ import annotations

from typing import Final

from quantyard.protocol.measurements import Verdict

NO_MARK: Final = ""
SHAPES: Final[dict[str, str]] = {
    "up": "M0-5 5 4H-5Z",
    "dot": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "down": "M0 5 5-4H-5Z",
    "open": "M0-5 5 0 0 5-5 0Z",
    "cross": "M-4-4 4 4M4-4-4 4",
    "plain": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
}
VERDICTS: Final[tuple[Verdict, ...]] = ("worse", "better", "same", "too few questions", "no signal")
# Verdict, outcome of a gate, status of a check → shape; report.css gives each shape its colour.
MARK_OF: Final[dict[str, str]] = {
    "better": "up", "same": "dot", "worse": "down", "too few questions": "open", "no signal": "cross",
    "passed": "dot", "failed": "down", "not measured": "open", "not supported": "open",
}  # fmt: skip
