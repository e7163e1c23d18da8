"""Guards the local server's application: key, routes, and limits of size, number and time.

An ASGI middleware that makes the same promises as the compose file's proxy, with the same limits (request_limits.json).
It checks the key, then the route, then the size and time of the body, then its content. Refused requests are answered
with errors in the API's own form, and never reach the application.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from server.limits.request_rules import LIMITS, TooMuch, check_request_limits, check_text_limit, parse_request_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

PIECE_S: Final = 10.0  # between two pieces of a body
REQUEST_S: Final = 3600.0  # for an answer, including the time in the queue
REQUESTS: Final = 192  # answered or queued at once
_HEALTH: Final = "/health"
_PROPS: Final = "/props"
_TOKENIZE: Final = "/extras/tokenize"
# To open a route: add its method and path. All other routes of the application stay closed.
ROUTES: Final = frozenset({
    ("GET", _HEALTH), ("GET", _PROPS), ("GET", "/v1/models"), ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"), ("POST", _TOKENIZE), ("POST", f"{_TOKENIZE}/count"),
})  # fmt: skip
_RETRY_AFTER_S: Final = 2
_TYPES: Final = {  # status → error type; any other status is an invalid request
    401: "authentication_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error",
    500: "server_error", 503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip


def local_error_body(status: int, message: str) -> dict[str, Any]:
    """An error in the API's own form."""
    return {"code": status, "message": message, "type": _TYPES.get(status, "invalid_request_error")}


class Refused(Exception):
    """A refused request, and the answer to it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def body(self) -> bytes:
        return json.dumps({"error": local_error_body(self.status, str(self))}).encode()

    def headers(self) -> Headers:
        named = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if self.status == HTTPStatus.UNAUTHORIZED:
            named.append((b"www-authenticate", b"Bearer"))
        if self.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            named.append((b"retry-after", b"%d" % _RETRY_AFTER_S))
        return [*named, (b"content-length", b"%d" % len(self.body()))]


@dataclass
class Pending:
    """A request that the application works on; once it is over, generation for it stops."""

    body: bytes
    is_over: bool = False  # read by the thread that generates
    has_timed_out: bool = False
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _is_read: bool = False

    def end(self) -> None:
        self.is_over = True
        self._over.set()

    def time_out(self) -> None:
        self.has_timed_out = True
        self.end()

    async def receive(self) -> Message:
        """The ASGI `receive` for the application: the body once, then a disconnect as soon as the request is over."""
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}


CURRENT: Final[ContextVar[Pending | None]] = ContextVar("request", default=None)


def is_local_request_over() -> bool:
    """Whether the request of this thread or task is over, so that nobody waits for its answer."""
    pending = CURRENT.get()
    return pending is not None and pending.is_over


@dataclass
class Guard:
    """An ASGI application that checks requests before it passes them on to `app`.

    Args:
        key: None: no key is required.
        model: the model's name for requests that name none; the bindings would answer with its path.
        props: the answer to GET /props.
        refusal: why the server's parser would refuse a request; "": it would not. Called in a thread.
    """

    app: App
    key: str | None
    model: str | None = None
    props: Mapping[str, Any] = field(default_factory=dict)
    refusal: Callable[[Mapping[str, Any]], str] = lambda _body: ""
    _n_requests: int = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        try:
            await self._serve(scope, receive, send)
        except Refused as refused:
            await _answer(send, refused.status, refused.headers(), refused.body())

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", _HEALTH):
            return await _answer_json(send, {"status": "ok"})
        self._check_key(scope)
        _check_route(method, path)
        if path == _PROPS:
            return await _answer_json(send, self.props)
        body = await self._body(scope, receive) if method == "POST" else b""
        if self._n_requests >= REQUESTS:
            raise Refused(429, f"{REQUESTS} requests are already in progress: try again later")
        self._n_requests += 1
        try:
            await self._pass_on(scope, Pending(body), receive, send)
        finally:
            self._n_requests -= 1
        return None

    def _check_key(self, scope: Message) -> None:
        if self.key is None:
            return
        shown = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(shown, b"Bearer " + self.key.encode()):
            raise Refused(401, "The API key is missing or wrong. Send the header Authorization: Bearer KEY.")

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        """Read and check the body; returns it serialized again, so that the application parses what was checked."""
        _check_type(dict(scope["headers"]))
        try:
            body = await _read(receive, LIMITS["body_bytes"].most)
        except TimeoutError:
            raise Refused(408, f"no part of the body arrived for {PIECE_S:g} s") from None
        try:
            asked = parse_request_body(body)
            check_request_limits(asked)
            if scope["path"].startswith(_TOKENIZE):
                check_text_limit(asked.get("input"))
        except TooMuch as error:
            raise Refused(400, str(error)) from None
        if why := await asyncio.to_thread(self.refusal, asked):
            raise Refused(400, why)
        if self.model and not asked.get("model"):
            asked["model"] = self.model
        return json.dumps(asked).encode()

    async def _pass_on(self, scope: Message, pending: Pending, receive: Receive, send: Send) -> None:
        """Run the application, never cancelled: that would admit the next request while its thread still generates."""
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            pending.end()

        CURRENT.set(pending)
        watcher = asyncio.create_task(watch())
        timer = asyncio.get_running_loop().call_later(REQUEST_S, pending.time_out)
        try:
            await self.app(_forwarded(scope, pending.body), pending.receive, _in_time(pending, send))
        finally:
            timer.cancel()
            watcher.cancel()


def _check_route(method: str, path: str) -> None:
    if (method, path) in ROUTES:
        return
    if any(path == known for _method, known in ROUTES):
        raise Refused(405, "This route does not take this method.")
    raise Refused(404, "This route does not exist.")


def _check_type(headers: Mapping[bytes, bytes]) -> None:
    """Accept JSON and the form type that `curl -d` sends, unless it has an Origin: any web page can send forms."""
    kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    is_from_curl = kind == b"application/x-www-form-urlencoded" and b"origin" not in headers
    if kind != b"application/json" and not is_from_curl:
        raise Refused(415, "a body must be application/json")
    if b"content-encoding" in headers:
        raise Refused(415, "a body must not be compressed")


async def _read(receive: Receive, most: int) -> bytes:
    """The whole body. One that is too large is read to its end but not kept, so that the client can read the error."""
    body, n_bytes, more = bytearray(), 0, True
    while more:
        async with asyncio.timeout(PIECE_S):
            message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the client left")
        piece, more = message.get("body", b""), message.get("more_body", False)
        n_bytes += len(piece)
        if n_bytes <= most:
            body += piece
    if n_bytes > most:
        raise Refused(413, f"the body has {n_bytes} bytes; at most {most} are allowed")
    return bytes(body)


def _forwarded(scope: Message, body: bytes) -> Message:
    """The request for the application, without Origin: the bindings would let pages of any web site read answers."""
    left_out = {b"content-length", b"content-type", b"transfer-encoding", b"origin", b"expect"}
    headers = [(name, value) for name, value in scope["headers"] if name not in left_out]
    told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return {**scope, "headers": headers + told}


def _in_time(pending: Pending, send: Send) -> Send:
    """An ASGI `send` that passes the application's answer on, or answers 504 if the request has timed out."""
    is_late = False

    async def passed(message: Message) -> None:
        nonlocal is_late
        if message["type"] == "http.response.start" and pending.has_timed_out:
            is_late = True
            refused = Refused(504, f"no answer after {REQUEST_S:g} s")
            await _answer(send, refused.status, refused.headers(), refused.body())
        if not is_late:
            await send(message)

    return passed


async def _answer_json(send: Send, value: Mapping[str, Any]) -> None:
    body = json.dumps(dict(value)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await _answer(send, HTTPStatus.OK, headers, body)


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
