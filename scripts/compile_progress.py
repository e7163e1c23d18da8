#!/usr/bin/env python3
"""Shows how far a compilation of llama.cpp has come, and keeps its log in a file.

A terminal gets one line that changes; a file or a pipe a line at each tenth.

Usage:  … 2>&1 | scripts/compile_progress.py LOG
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quantyard.formatting.compilation import CompileProgress


def main(log: Path) -> None:
    """Follow stdin to its end."""
    progress, on_terminal = CompileProgress(), sys.stderr.isatty()
    with log.open("wb") as file:
        for line in sys.stdin.buffer:
            file.write(line)
            file.flush()
            text = line.decode(errors="replace")
            if said := progress.read(text) if on_terminal else progress.read_tenths(text):
                sys.stderr.write(f"\r\x1b[K{said}" if on_terminal else f"{said}\n")
                sys.stderr.flush()
    if on_terminal:
        sys.stderr.write("\r\x1b[K")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
