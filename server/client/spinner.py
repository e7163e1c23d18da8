"""A sign on a terminal that an answer is on its way, until its first piece arrives."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

_FRAMES: Final = "|/-\\"
_STEP_S: Final = 0.15
_ERASE: Final = "\r\x1b[K"


@contextmanager
def spinner(out: TextIO, *, shown: bool) -> Iterator[threading.Event]:
    """Turns until the event that it yields is set, or until the block ends; then its line is empty again.

    Args:
        shown: False where `out` is not a terminal: nothing is written.
    """
    arrived = threading.Event()
    if not shown:
        yield arrived
        return
    thread = threading.Thread(target=_turn_spinner, args=(out, arrived), daemon=True)
    thread.start()
    try:
        yield arrived
    finally:
        arrived.set()
        thread.join()


def _turn_spinner(out: TextIO, arrived: threading.Event) -> None:
    for frame in itertools.cycle(_FRAMES):
        if arrived.wait(_STEP_S):
            break
        out.write(f"\r{frame}")
        out.flush()
    out.write(_ERASE)
    out.flush()
