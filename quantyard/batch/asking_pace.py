"""When to ask again about something that may take seconds or days: often at first, then ever more rarely."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

_SHARE: Final = 0.05  # of the time since the start: an answer is late by at most this much


@dataclass
class AskingPace:
    """The times of questions, from one each `least_s` to one each `most_s`, in seconds."""

    least_s: float
    most_s: float
    _began: float = 0.0
    _asked_at: float | None = None

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def is_due(self) -> bool:
        """Whether to ask now; if so, the next question has to wait."""
        now = time.monotonic()
        waits_s = min(self.most_s, max(self.least_s, _SHARE * (now - self._began)))
        if self._asked_at is not None and now - self._asked_at < waits_s:
            return False
        self._asked_at = now
        return True
