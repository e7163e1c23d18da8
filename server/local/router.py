"""What the local server answers itself of several models, as llama-server's router does: which are loaded and when that
changes, and the metrics of all. Everything else is for the models.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Final

from server.local.forward import model_in_query
from server.local.guard import Message, Receive, Send, guard_answer, guard_answer_json
from server.local.metrics import METRICS_TYPE, merge_model_metrics
from server.local.models import Models

_EVENTS: Final = "/models/sse"
_LOAD: Final = "/models/load"
_METRICS: Final = "/metrics"
_PROPS: Final = "/props"


@dataclass
class Router:
    """The application."""

    models: Models
    _listeners: set[asyncio.Queue[bytes]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.models.tell = self._tell

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path, names_one = scope["path"], bool(model_in_query(scope))
        if path == _EVENTS:
            await self._send_events(send)
        elif path == _LOAD:
            await self.models.load(scope, (await receive())["body"])
            await guard_answer_json(send, {"success": True})
        elif path == _METRICS and not names_one:
            metrics = {name: await self.models.metrics(name) for name in self.models.models}
            await guard_answer(send, METRICS_TYPE, merge_model_metrics(metrics).encode())
        elif path == _PROPS and not names_one and len(self.models.models) > 1:
            await guard_answer_json(send, self._props())
        else:
            await self.models(scope, receive, send)

    def _props(self) -> dict[str, Any]:
        """What tells the web page that there are several models."""
        settings = {"params": None, "n_ctx": 0}
        return {
            "role": "router", "max_instances": self.models.kept, "models_autoload": True,
            "default_generation_settings": settings, "server": self.models.server, "build_info": self.models.server,
        }

    def _tell(self, model: str, status: str) -> None:
        event = {"model": model, "event": "status_change", "data": {"status": status}}
        for listener in self._listeners:
            listener.put_nowait(b"data: %s\n\n" % json.dumps(event).encode())

    async def _send_events(self, send: Send) -> None:
        """Until the client leaves: then this is cancelled."""
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})  # so that the headers leave
        listener: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners.add(listener)
        try:
            while True:
                await send({"type": "http.response.body", "body": await listener.get(), "more_body": True})
        finally:
            self._listeners.discard(listener)
