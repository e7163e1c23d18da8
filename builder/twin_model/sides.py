"""Why one of the two sides of a comparison ended."""

from __future__ import annotations

from typing import Final

from builder.llama.run_tool import ToolRun

_MAX_REASON: Final = 600


def last_words_of_side(run: ToolRun, who: str, told: int | None = None) -> str:
    """Its own last line where its exit code is `told`, else whose it was; the end of a sentence."""
    lines = run.tail.splitlines() or ["no output"]
    if run.exit_code == told:
        return f"{'llama.cpp ' if who == 'llama.cpp' else ''}{lines[-1]}"[:_MAX_REASON]
    how = f"signal {-run.exit_code}" if run.exit_code < 0 else f"exit code {run.exit_code}"
    return f"{who} ends with {how} on it: {lines[-1]}"[:_MAX_REASON]
