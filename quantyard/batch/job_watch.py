"""Asks the queue about all jobs of a run at once, whichever thread wants to know, and not more often than needed."""

from __future__ import annotations

import threading
import time
from typing import Final

from quantyard.batch import BatchQueue, JobStatus
from quantyard.batch.errors import QueueSilent

_EVERY_S: Final = 1.5
_PATIENCE_S: Final = 900.0


class JobWatch:
    """The latest status of each watched job. A queue that is silent for long ends the wait."""

    def __init__(self, queue: BatchQueue, every_s: float = _EVERY_S, patience_s: float = _PATIENCE_S) -> None:
        self._queue, self._every_s, self._patience_s = queue, every_s, patience_s
        self._lock = threading.Lock()
        self._watched: dict[str, JobStatus] = {}
        self._asked_at = self._heard_at = 0.0
        self.is_silent = False

    def add_job(self, job_id: str) -> None:
        """Watch a job."""
        with self._lock:
            self._watched[job_id] = JobStatus("queued")
            self._asked_at, self._heard_at = time.monotonic(), time.monotonic()

    def remove_job(self, job_id: str) -> None:
        """Watch it no longer."""
        with self._lock:
            self._watched.pop(job_id, None)

    def watched_jobs(self) -> list[str]:
        """The jobs that are watched."""
        with self._lock:
            return list(self._watched)

    def job_status(self, job_id: str) -> JobStatus:
        """The status of a job, a second or two old.

        Raises:
            QueueSilent: the queue has not answered for a quarter of an hour.
        """
        with self._lock:
            if time.monotonic() - self._asked_at >= self._every_s:
                self._ask_queue()
            return self._watched[job_id]

    def _ask_queue(self) -> None:
        try:
            self._watched |= self._queue.poll(list(self._watched))
            self._heard_at, self.is_silent = time.monotonic(), False
        except QueueSilent:
            self.is_silent = True
            if time.monotonic() - self._heard_at > self._patience_s:
                raise
        finally:
            self._asked_at = time.monotonic()
