"""Where the project's own files are, and its pinned versions."""

from __future__ import annotations

from pathlib import Path
from typing import Final

REPO_DIR: Final = Path(__file__).resolve().parents[1]


def read_pins(path: Path) -> dict[str, str]:
    """The pins of versions.env."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
