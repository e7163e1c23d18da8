"""The progress of a compilation, read from what ninja prints: `[31/91] …` before each step.

The standard library alone: a script uses it before any virtual environment exists.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

from quantyard.formatting.numbers import format_running

# Also behind the number and the time that BuildKit puts before a line; its own steps are `#5 [2/3] RUN …`.
_STEP: Final = re.compile(r"^(?:#\d+ [\d.]+ )?\s*\[(\d+)/(\d+)\] ")


class CompileProgress:
    """Per cent, elapsed and remaining time of llama.cpp's compilation; the clock starts when it is made."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Args: now: the time, in seconds."""
        self._now = now
        self._began = now()
        self._first: tuple[float, int] | None = None
        self._total = 0
        self._tenth = -1

    def read(self, line: str) -> str | None:
        """What a line of the log says of it; None for a line that says nothing.

        Steps are those of the outer build: one inside of it, which has fewer, is one step.
        """
        found = _STEP.match(line)
        if not found or int(found[2]) < self._total:
            return None
        done, self._total, time_s = int(found[1]), int(found[2]), self._now()
        self._first = self._first or (time_s, done)
        since_s, steps = time_s - self._first[0], done - self._first[1]
        left_s = since_s / steps * (self._total - done) if steps and done < self._total else None
        return f"compiling llama.cpp: {100 * done // self._total} % · {format_running(time_s - self._began, left_s)}"

    def read_tenths(self, line: str) -> str | None:
        """As `read`, but once for each tenth: for a log, in which lines stay."""
        said = self.read(line)
        if said is None or (tenth := int(said.split()[2]) // 10) <= self._tenth:
            return None
        self._tenth = tenth
        return said
