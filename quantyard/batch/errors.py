"""Errors of queues."""

from __future__ import annotations

from quantyard.errors import EngineError


class QueueSilent(EngineError):
    """The scheduler does not answer. Its jobs may go on, so who waits for one waits longer."""

    kind = "queue-silent"


class KubeRefused(EngineError):
    """Kubernetes' API refuses a request: a right is missing, or the cluster does not take an object."""

    kind = "kube-refused"

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status  # of HTTP
