"""Limits for connections to the local server: how many, how long a request may take to arrive and an answer to leave.

uvicorn closes an idle connection after an answer, but waits forever for a first request head, for a slow one, and for a
client that does not read. Here each of these has a deadline. When connections run out, the oldest one whose request is
not complete is closed for a newer one, so idle connections do not block other clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.local.guard import Refused


@dataclass
class Connections:
    """All open connections of a server, the least recently used first."""

    in_all: int = 1024
    per_client: int = 512  # per address
    head_s: float = 10.0  # to receive a whole request head, counted from the connection or the last answer
    send_s: float = 60.0  # for the client to read what is buffered for it
    _open: dict[LimitedProtocol, None] = field(default_factory=dict)

    def enter(self, newcomer: LimitedProtocol) -> bool:
        """Add a connection; False: the limit is reached, and every other connection has a complete request."""
        of_client = [one for one in self._open if one.host == newcomer.host]
        if len(of_client) >= self.per_client:
            has_room = self._make_room(of_client)
        else:
            has_room = len(self._open) < self.in_all or self._make_room(self._open)
        if has_room:
            self._open[newcomer] = None
        return has_room

    def leave(self, connection: LimitedProtocol) -> None:
        self._open.pop(connection, None)

    def used(self, connection: LimitedProtocol) -> None:
        """Mark a connection that was answered as the most recently used."""
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)

    def _make_room(self, among: Iterable[LimitedProtocol]) -> bool:
        oldest = next((one for one in among if one.is_waiting), None)
        if oldest is None:
            return False
        self.leave(oldest)
        oldest.transport.abort()
        return True


class LimitedProtocol(H11Protocol):  # type: ignore[misc]  # uvicorn is only in .venv-local
    """uvicorn's HTTP/1.1 protocol with deadlines and a limit on connections."""

    def __init__(self, connections: Connections, **told: Any) -> None:
        super().__init__(**told)
        self._connections = connections
        self._head: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    @property
    def host(self) -> str:
        """The client's address."""
        return self.client[0] if self.client else ""

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for a request, or for the rest of one."""
        return self._needs_head or self.cycle.more_body

    @property
    def _needs_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if self._connections.enter(self):
            self._await_head()
        else:
            self._end(Refused(503, "too many connections: try again later"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)
        _cancel_connection_timer(self._head)
        _cancel_connection_timer(self._sending)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._needs_head:
            _cancel_connection_timer(self._head)

    def on_response_complete(self) -> None:
        self._connections.used(self)
        super().on_response_complete()
        if self._needs_head:
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self.loop.call_later(self._connections.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel_connection_timer(self._sending)

    def send_400_response(self, msg: str) -> None:
        self._end(Refused(400, msg))

    def _await_head(self) -> None:
        """Start the deadline for a head, also on a closing connection, whose client may never read the last bytes."""
        _cancel_connection_timer(self._head)
        self._head = self.loop.call_later(self._connections.head_s, self.transport.abort)

    def _end(self, refused: Refused) -> None:
        response = h11.Response(status_code=refused.status, headers=refused.headers())
        events = (response, h11.Data(data=refused.body()), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


def _cancel_connection_timer(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
