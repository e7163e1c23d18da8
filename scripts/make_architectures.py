#!/usr/bin/env python3
"""Write quantyard/sources/converter_architectures.txt: the architectures that the locked llama.cpp converts.

Usage:  .venv/bin/python scripts/make_architectures.py          after the lock of llama-cpp-python moved, and
                                                              scripts/setup-local.sh has unpacked its converter
Exit codes:  0 written · 1 the converter is not there
"""

from __future__ import annotations

import re
import sys

from quantyard.paths import REPO_DIR
from quantyard.sources.architectures import LIST_FILE, converter_architectures

CONVERTER = REPO_DIR / ".venv-local" / "share" / "llama.cpp" / "conversion" / "__init__.py"


def architectures_text(converter: str) -> str:
    """The content of the file, of the text of the converter's list."""
    lock = (REPO_DIR / "locks" / "sdists.txt").read_text()
    version = re.search(r"^llama-cpp-python==(\S+)", lock, re.MULTILINE)
    assert version is not None
    names = "\n".join(sorted(converter_architectures(converter)))
    head = f"# Text models that the converter of llama-cpp-python {version[1]} knows (scripts/make_architectures.py)."
    return f"{head}\n{names}\n"


if __name__ == "__main__":
    if not CONVERTER.is_file():
        sys.exit(f"{CONVERTER} does not exist. Type: scripts/setup-local.sh")
    LIST_FILE.write_text(architectures_text(CONVERTER.read_text()))
