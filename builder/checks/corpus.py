"""Reads `running_text.txt`: passages in many languages and scripts, to measure how much of ordinary text differs.

No import but the standard library: `hf_reference.py` loads this file in the converter's Python.
"""

from __future__ import annotations

from pathlib import Path

_HEAD = "== "


def running_text() -> list[dict[str, str]]:
    """The passages in the file's order: `name`, `script` and `text`."""
    lines = Path(__file__).with_name("running_text.txt").read_text(encoding="utf-8").splitlines()
    found: list[tuple[str, str, list[str]]] = []
    for line in lines:
        if line.startswith(_HEAD):
            name, script = line.removeprefix(_HEAD).split()
            found.append((name, script, []))
        elif found:
            found[-1][2].append(line)
    return [{"name": name, "script": script, "text": "\n".join(text).strip("\n")} for name, script, text in found]
