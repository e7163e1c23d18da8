"""Errors of queues."""

from __future__ import annotations

from quantyard.errors import EngineError


class QueueSilent(EngineError):
    """The scheduler does not answer. Its jobs may go on, so who waits for one waits longer."""

    kind = "queue-silent"
