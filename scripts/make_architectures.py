#!/usr/bin/env python3
"""Write quantyard/sources/converter_*.txt: the architectures that the locked llama.cpp converts.

Usage:  .venv/bin/python scripts/make_architectures.py          after the lock of llama-cpp-python moved, and
                                                              scripts/setup-local.sh has unpacked its converter
Exit codes:  0 written · 1 the converter is not there
"""

from __future__ import annotations

import re
import sys

from quantyard.paths import REPO_DIR
from quantyard.sources.architectures import LIST_FILE, converter_architectures
from quantyard.sources.projector import PROJECTORS_FILE, converter_projectors

CONVERTER = REPO_DIR / ".venv-local" / "share" / "llama.cpp" / "conversion" / "__init__.py"


def architectures_text(converter: str) -> str:
    """The content of converter_architectures.txt, of the text of the converter's list."""
    return _listed("Text models", converter_architectures(converter))


def projectors_text(converter: str) -> str:
    """The content of converter_projectors.txt."""
    return _listed("Models with a projector (mmproj)", converter_projectors(converter))


def _listed(what: str, names: frozenset[str]) -> str:
    lock = (REPO_DIR / "locks" / "sdists.txt").read_text()
    version = re.search(r"^llama-cpp-python==(\S+)", lock, re.MULTILINE)
    assert version is not None
    head = f"# {what} that the converter of llama-cpp-python {version[1]} knows (scripts/make_architectures.py)."
    return "\n".join([head, *sorted(names)]) + "\n"


if __name__ == "__main__":
    if not CONVERTER.is_file():
        sys.exit(f"{CONVERTER} does not exist. Type: scripts/setup-local.sh")
    LIST_FILE.write_text(architectures_text(CONVERTER.read_text()))
    PROJECTORS_FILE.write_text(projectors_text(CONVERTER.read_text()))
