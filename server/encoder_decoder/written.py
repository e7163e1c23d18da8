"""The text of an answer as it grows: whole characters only, and nothing that may be the beginning of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class WrittenText:
    """Takes the bytes of tokens, and gives the text that is certain."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # not given yet
        self.is_stopped = False

    def add(self, piece: bytes) -> str:
        """What became certain with this token; `is_stopped` once a stop string is complete."""
        return self._take(self._decoder.decode(piece), is_end=False)

    def end(self) -> str:
        """What is left at the end of the answer."""
        return self._take(self._decoder.decode(b"", final=True), is_end=True)

    def _take(self, text: str, *, is_end: bool) -> str:
        if self.is_stopped:
            return ""
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped, given = True, self._held[: min(found)]
            return given
        n_held = 0 if is_end else max((_overlap_with_stop_text(self._held, stop) for stop in self._stop), default=0)
        at = len(self._held) - n_held
        given, self._held = self._held[:at], self._held[at:]
        return given


def _overlap_with_stop_text(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
