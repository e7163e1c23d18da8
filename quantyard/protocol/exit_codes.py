"""How a stage, and the command line, ends. Nothing else is imported, so that the command line starts at once."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a stage, and the command line, ends."""

    DONE = 0
    BAD_REQUEST = 2
    UNSUPPORTED_MODEL = 3
    NETWORK = 4
    RESOURCES = 5  # out of disk or memory
    BUG = 70
    INTERRUPTED = 130
