"""How a process of llama.cpp ends by itself: it asserts and aborts, or it crashes. Both are about the model it reads.

Only SIGKILL and SIGTERM come from outside: a user, a time limit, the kernel that runs out of memory.
"""

from __future__ import annotations

import re
import signal
from collections import deque
from typing import Final

CRASHES: Final = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGFPE, signal.SIGTRAP})
_SHELL: Final = 128  # a shell, and Docker, say 128 + the signal
_LONGEST: Final = 400  # characters of an assertion
# To recognize one more way in which llama.cpp and what it is built on say why they abort: add a row.
_REASONS: Final = re.compile(
    r"GGML_ASSERT\(|GGML_ABORT|ggml_abort|\bfatal error\b|what\(\):|terminate called|Assertion .* failed|: Assertion"
)


def crash_signal(exit_code: int) -> signal.Signals | None:
    """The signal by which a process ended itself, from its exit code (negative, or over 128); None: it did not."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL
    return next((each for each in CRASHES if each == number), None)


def crash_reason(tail: str) -> str:
    """The line that says why, an assertion most often; "" where none does. The most telling is the first."""
    line = next((line.strip() for line in tail.splitlines() if _REASONS.search(line)), "")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def crash_words(exit_code: int, tail: str) -> str:
    """"aborted (SIGABRT): ggml.c:12: GGML_ASSERT(…) failed", or "" for a process that did not crash."""
    found = crash_signal(exit_code)
    if found is None:
        return ""
    how = "aborted" if found == signal.SIGABRT else "crashed"
    reason = crash_reason(tail)
    return f"{how} ({found.name}){f': {reason}' if reason else ''}"


class TailWithReason:
    """The last lines of a process, and the first line that says why it aborts: a backtrace would push it out."""

    def __init__(self, n_lines: int) -> None:
        self._lines: deque[str] = deque(maxlen=n_lines)
        self._reason, self._behind = "", 0

    def append(self, line: str) -> None:
        """One more line."""
        self._lines.append(line)
        self._behind += 1
        if not self._reason and _REASONS.search(line):
            self._reason, self._behind = line[:_LONGEST], 0

    def __str__(self) -> str:
        """The lines; the reason first where it is not among them."""
        is_lost = self._reason and self._behind >= (self._lines.maxlen or 0)
        return "\n".join([self._reason, *self._lines] if is_lost else self._lines)
