"""Whole lines of what a stage prints, however much of it there is and however long a line gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MAX_LINE_BYTES: Final = 8 * 1024
_MOST_LINES: Final = 200  # at each end of a block: who prints more in one go is not read line by line


class Lines:
    """Cuts blocks of bytes into lines. What is more than a line may hold is dropped, so that it costs neither memory
    nor time: 100 MB without an end of line are one short line.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, block: bytes) -> Iterator[str]:
        """The lines that end in this block; blank ones are left out."""
        *whole, rest = block.split(b"\n")
        if len(whole) > 2 * _MOST_LINES:
            whole = whole[:_MOST_LINES] + whole[-_MOST_LINES:]
        for part in whole:
            self._add(part)
            yield from self.end()
        self._add(rest)

    def end(self) -> Iterator[str]:
        """The line that was begun, as far as it has come."""
        line = self._rest.decode(errors="replace").rstrip()
        self._rest.clear()
        if line:
            yield line

    def _add(self, part: bytes) -> None:
        self._rest += part[: MAX_LINE_BYTES - len(self._rest)]
