"""Several parts that are started together, in order, and stopped in the other order."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self


class StartedTogether:
    """A `with` of what `_start` starts: each part gives `_stack` what ends it. If one fails, the others end."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        raise NotImplementedError
