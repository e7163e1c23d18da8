"""Recognizes that a process of llama.cpp aborted (on an assertion) or crashed, which is put down to the model it reads.

SIGKILL and SIGTERM are not crashes: they come from a user, a time limit, or the kernel when memory runs out.
"""

from __future__ import annotations

import re
import signal
from collections import deque
from collections.abc import Iterable
from typing import Final

CRASHES: Final = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGFPE, signal.SIGTRAP})
_SHELL: Final = 128  # shells and Docker report a signal as 128 + its number
_LONGEST: Final = 400  # characters of an assertion
# To recognize another message with which llama.cpp or its libraries abort: add an alternative.
_REASONS: Final = re.compile(
    r"GGML_ASSERT\(|GGML_ABORT|ggml_abort|\bfatal error\b|what\(\):|terminate called|Assertion .* failed|: Assertion"
)
_FOLDERS: Final = re.compile(r"^\.?/(?:\S*/)?(?=[^/\s]+:\d+: )")
_BACKTRACE: Final = re.compile(r"^\s*(?:#\d+ |\d+\s+(?:in )?\S|\[|0x|lib\S+\.so|warning: |Using host |This GDB )")


def crash_signal(exit_code: int) -> signal.Signals | None:
    """The signal of a crash, from an exit code (negative, or above 128); None if the process did not crash."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL
    return next((each for each in CRASHES if each == number), None)


def crash_reason(tail: str) -> str:
    """The first line that gives the reason of an abort, usually an assertion, without the folders of its source file;
    "" if none does.
    """
    line = next((line.strip() for line in tail.splitlines() if _REASONS.search(line)), "")
    line = _FOLDERS.sub("", line)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def crash_words(exit_code: int, tail: str) -> str:
    """Such as "aborted (SIGABRT): ggml.c:12: GGML_ASSERT(…) failed"; "" for a process that did not crash."""
    found = crash_signal(exit_code)
    if found is None:
        return ""
    how = "aborted" if found == signal.SIGABRT else "crashed"
    reason = crash_reason(tail)
    return f"{how} ({found.name}){f': {reason}' if reason else ''}"


def has_assertion(tail: str) -> bool:
    """Whether an assertion of llama.cpp's own failed."""
    return "GGML_ASSERT" in tail or "GGML_ABORT" in tail


def without_backtrace(tail: str) -> str:
    """The lines that a reader of the message needs."""
    return "\n".join(line for line in tail.splitlines() if not _BACKTRACE.match(line))


class TailWithReason:
    """The last lines of a process, and the first one with the reason of an abort, even if a long backtrace follows."""

    def __init__(self, n_lines: int) -> None:
        self._lines: deque[str] = deque(maxlen=n_lines)
        self._reason, self._behind = "", 0

    @classmethod
    def of_lines(cls, lines: Iterable[str], n_lines: int) -> str:
        """The tail of these lines."""
        tail = cls(n_lines)
        for line in lines:
            tail.append(line)
        return str(tail)

    def append(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)
        self._behind += 1
        if not self._reason and _REASONS.search(line):
            self._reason, self._behind = line[:_LONGEST], 0

    def __str__(self) -> str:
        """The lines, after the reason if it is not among them."""
        is_lost = self._reason and self._behind >= (self._lines.maxlen or 0)
        return "\n".join([self._reason, *self._lines] if is_lost else self._lines)
