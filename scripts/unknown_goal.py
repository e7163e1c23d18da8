#!/usr/bin/env python3
"""Writes the sentence for a word after `make` that names nothing to make.

Usage:  python3 scripts/unknown_goal.py WORD KNOWN…
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence


def sentence(word: str, known: Sequence[str]) -> str:
    """What is wrong with the word, and what to type."""
    shown = word[:80]
    if word == "," or (word.upper() == word and word[:1].isalpha()):  # Q8_0 of `QUANT=Q4_K_M, Q8_0`
        return f"make takes {shown} for a command: a space ends a value. Write a list without spaces: QUANT=Q4_K_M,Q8_0"
    close = difflib.get_close_matches(word, [name for name in known if not name.startswith(".")], n=1)
    meant = f" Did you mean: make {close[0]}?" if close else ""
    return f"{shown} is not a command of make.{meant} List them: make help"


if __name__ == "__main__":
    sys.stdout.write(sentence(sys.argv[1], sys.argv[2:]) + "\n")
