"""Says in the shared store that a stage runs, and how far it is, while it runs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from quantyard.errors import QuantyardError
from quantyard.protocol.base import Progress
from quantyard.shared_store.attempts import PROGRESS, Attempt
from quantyard.shared_store.leases import renew_lease

LIVES_S: Final = 45.0  # after its last heartbeat, an attempt counts as dead
_PROGRESS_S: Final = 2.0
_RENEWED_S: Final = 15.0
_SILENT_S: Final = 15.0  # at the end, for what is being written


class Heartbeat:
    """A thread that renews the lease of an attempt, and passes new progress on every two seconds at most."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._progress: Progress | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(timeout=_SILENT_S)

    def take_progress(self, progress: Progress) -> None:
        """The latest progress of the stage; called from any thread."""
        self._progress = progress

    def _beat(self) -> None:
        told: Progress | None = None
        renewed_at = time.monotonic()
        while not self._ended.wait(_PROGRESS_S):
            now, progress = time.monotonic(), self._progress
            with suppress(QuantyardError):  # the store may be away for a while; the stage goes on
                if progress is not None and progress != told:
                    self._attempt.put(PROGRESS, progress.model_dump_json().encode())
                    told = progress
                if now - renewed_at >= _RENEWED_S:
                    self._attempt.heartbeat()
                    renew_lease(self._attempt.store, self._attempt.key, self._attempt.lease)
                    renewed_at = now
