"""Cuts the output of a stage into lines, within limits on their length and number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MAX_LINE_BYTES: Final = 8 * 1024
_MOST_LINES: Final = 200  # kept at each end of a block; the middle of a longer block is dropped


class OutputLines:
    """Cuts blocks of bytes into lines. Long lines are truncated, so 100 MB without a newline cost neither memory nor
    time.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, block: bytes) -> Iterator[str]:
        """The lines that end in this block, except blank ones."""
        *whole, rest = block.split(b"\n")
        if len(whole) > 2 * _MOST_LINES:
            whole = whole[:_MOST_LINES] + whole[-_MOST_LINES:]
        for part in whole:
            self._add(part)
            yield from self.end()
        self._add(rest)

    def end(self) -> Iterator[str]:
        """The unfinished last line."""
        line = self._rest.decode(errors="replace").rstrip()
        self._rest.clear()
        if line:
            yield line

    def _add(self, part: bytes) -> None:
        self._rest += part[: MAX_LINE_BYTES - len(self._rest)]
