"""What `doctor` says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DoctorFinding:
    """One finding. `missing` means that no build can run without it."""

    what: str
    state: Literal["ok", "note", "missing"]
    value: str
    remedy: str = ""
