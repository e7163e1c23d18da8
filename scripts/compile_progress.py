#!/usr/bin/env python3
"""Turns the log of a compilation into progress: how much, for how long, and how long it may still take.

Ninja writes `[31/91] …` before each step. The log on stdin is kept in a file. A terminal gets one line that changes; a
file or a pipe a line at each tenth.

Usage:  … 2>&1 | scripts/compile_progress.py LOG
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_STEP = re.compile(rb"\[(\d+)/(\d+)\] ")
_LITTLE_S = 60.0  # of which nothing is foretold


def progress(lines: Iterable[bytes], now: Iterator[float]) -> Iterator[tuple[int, str]]:
    """Per cent and a sentence, for each step of the outer build; a build inside of it has fewer steps.

    Args:
        lines: ninja's, and others.
        now: seconds; one for the start, one for each step.
    """
    total, began = 0, next(now)
    first: tuple[float, int] | None = None
    for line in lines:
        if not (found := _STEP.search(line)) or int(found[2]) < total:
            continue
        done, total, time_s = int(found[1]), int(found[2]), next(now)
        first = first or (time_s, done)
        percent, since = 100 * done // total, time_s - first[0]
        left = since / (done - first[1]) * (total - done) if done > first[1] else None
        yield percent, f"Compiling llama.cpp: {percent} % · elapsed {clock(time_s - began)} · {forecast(left)}"


def clock(seconds: float) -> str:
    """Such as 0:58 or 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def forecast(seconds: float | None) -> str:
    """Such as `about 4 min left`."""
    if seconds is None:
        return "usually 5 to 15 min"
    return f"about {max(1, round(seconds / 60))} min left" if seconds > _LITTLE_S / 2 else "less than a minute left"


def _kept(log: Path) -> Iterator[bytes]:
    with log.open("wb") as file:
        for line in sys.stdin.buffer:
            file.write(line)
            file.flush()
            yield line


def _clocks() -> Iterator[float]:
    while True:
        yield time.monotonic()


def main(log: Path) -> None:
    """Follow stdin to its end."""
    on_terminal, said = sys.stderr.isatty(), -1
    for percent, sentence in progress(_kept(log), _clocks()):
        if on_terminal:
            sys.stderr.write(f"\r\x1b[K{sentence}")
        elif percent // 10 > said:
            said = percent // 10
            sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
    if on_terminal:
        sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
