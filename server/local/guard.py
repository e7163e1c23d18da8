"""The guard of the local server: key, routes, and limits of size, number and time.

An ASGI middleware that makes the same promises as the compose file's proxy, with the same limits (request_limits.json)
and routes (server/proxy/routes.js). It checks the key, then the route, then the size and time of the body, then its
content. Refused requests are answered with errors in the API's own form, and never reach the application.

What is behind it may be any ASGI application that answers these routes, such as `forward.Forward`, which asks another
HTTP server. Such an application gets the whole checked body as its first message, is cancelled once nobody waits for
its answer, and may raise `Refused` before it answers.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
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
_GET: Final = frozenset({"GET", "HEAD"})
_POST: Final = frozenset({"POST"})
# To open a route: add a row here and in server/proxy/routes.js. All other routes of the application stay closed.
ROUTES: Final = {
    **dict.fromkeys(
        ("/health", "/v1/health", "/v1/models", "/models", "/models/sse", "/metrics", "/props"), _GET
    ),
    **dict.fromkeys((
        "/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/completion",
        "/v1/responses", "/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings", "/embeddings",
        "/v1/rerank", "/tokenize", "/detokenize", "/apply-template", "/models/load",
    ), _POST),
}  # fmt: skip
OPEN: Final = frozenset({"/health", "/v1/health"})  # without a key
# The files of llama-server's web page: without a key, since the page asks for it by itself. As in routes.js.
PAGE: Final = re.compile(
    r"/(index\.html|build\.json|[A-Za-z0-9_-]+\.(js|mjs|css|svg|ico|png|webp|webmanifest)"
    r"|_app/[A-Za-z0-9_/.-]+\.(js|mjs|css|json|svg|png|webp|wasm|ttf|woff2?))?"
)
_TOKENIZE: Final = "/tokenize"
_RETRY_AFTER_S: Final = 2
_TYPES: Final = {  # status → error type; any other status is an invalid request
    401: "authentication_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error",
    500: "server_error", 503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip


class Refused(Exception):
    """A refused request, and the answer to it: an error in the API's own form."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def body(self) -> bytes:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return json.dumps({"error": {"code": self.status, "message": str(self), "type": kind}}).encode()

    def event(self) -> bytes:
        """The last event of a stream, as clients of every API that streams read it (server/proxy/streams.js)."""
        error = json.loads(self.body())
        return b"\n\nevent: error\ndata: " + json.dumps({"type": "error", **error}).encode() + b"\n\n"

    def headers(self) -> Headers:
        named = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if self.status == HTTPStatus.UNAUTHORIZED:
            named.append((b"www-authenticate", b"Bearer"))
        if self.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            named.append((b"retry-after", b"%d" % _RETRY_AFTER_S))
        return [*named, (b"content-length", b"%d" % len(self.body()))]


@dataclass
class Guard:
    """An ASGI application that checks requests before it passes them on to `app`.

    Args:
        key: None: no key is required.
    """

    app: App
    key: str | None
    _n_requests: int = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        try:
            await self._serve(scope, receive, answer)
        except Refused as refused:
            await answer.refuse(refused)
        except Exception:
            traceback.print_exc()
            await answer.refuse(Refused(500, "the server failed; its log says how"))

    async def _serve(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        method, path = scope["method"], scope["path"]
        if path not in OPEN and not (method in _GET and PAGE.fullmatch(path)):
            self._check_key(scope)
        _check_request_route(method, path)
        if method != "POST":
            return await self._pass_on(_checked_request_scope(scope, b""), b"", receive, answer)
        body = await _checked_request_body(scope, receive)
        if self._n_requests >= REQUESTS:
            raise Refused(429, f"{REQUESTS} requests are already in progress: try again later")
        self._n_requests += 1
        try:
            await self._pass_on(_checked_request_scope(scope, body), body, receive, answer)
        finally:
            self._n_requests -= 1
        return None

    def _check_key(self, scope: Message) -> None:
        if self.key is None:
            return
        headers = dict(scope["headers"])
        shown = headers.get(b"authorization") or b"Bearer " + headers.get(b"x-api-key", b"")
        if not hmac.compare_digest(shown, b"Bearer " + self.key.encode()):
            raise Refused(401, "The API key is missing or wrong. Send the header Authorization: Bearer KEY.")

    async def _pass_on(self, scope: Message, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the application until it has answered, its client leaves or the time is over; then it is cancelled."""
        async def first_message() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        work = asyncio.create_task(_run_guarded_request(self.app(scope, first_message, answer)))
        left = asyncio.create_task(_wait_for_client_to_leave(receive))
        try:
            await asyncio.wait((work, left), timeout=REQUEST_S, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not left.done():
                raise Refused(504, f"no answer after {REQUEST_S:g} s")
            if work.done():
                await work  # raises what it raised
        finally:
            left.cancel()
            work.cancel()
            await asyncio.gather(work, left, return_exceptions=True)


async def _run_guarded_request(work: Awaitable[None]) -> None:
    await work


async def _wait_for_client_to_leave(receive: Receive) -> None:
    """Wait until the client closes its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass
class _Answer:
    """An ASGI `send` that knows whether an answer has begun."""

    send: Send
    has_begun: bool = False
    is_stream: bool = False  # of server-sent events

    async def __call__(self, message: Message) -> None:
        if not self.has_begun:
            self.is_stream = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
        self.has_begun = True
        await self.send(message)

    async def refuse(self, refused: Refused) -> None:
        """Answer with an error. A stream that has begun ends with it as the last event; any other answer that has
        begun ends before its end, by which its client knows.
        """
        if not self.has_begun:
            await _send_guard_answer(self.send, refused.status, refused.headers(), refused.body())
        elif self.is_stream:
            await self.send({"type": "http.response.body", "body": refused.event()})


def _check_request_route(method: str, path: str) -> None:
    methods = ROUTES.get(path, _GET if PAGE.fullmatch(path) else None)
    if methods is None:
        raise Refused(404, "This route does not exist.")
    if method not in methods:
        raise Refused(405, "This route does not take this method.")


async def _checked_request_body(scope: Message, receive: Receive) -> bytes:
    """Read and check the body; returns it serialized again, so that the application parses what was checked."""
    _check_content_type(dict(scope["headers"]))
    try:
        body = await _read_request_body(receive, LIMITS["body_bytes"].most)
    except TimeoutError:
        raise Refused(408, f"no part of the body arrived for {PIECE_S:g} s") from None
    try:
        asked = parse_request_body(body)
        check_request_limits(asked)
        if scope["path"] == _TOKENIZE:
            check_text_limit(asked.get("content"))
    except TooMuch as error:
        raise Refused(400, str(error)) from None
    return json.dumps(asked).encode()


def _check_content_type(headers: Mapping[bytes, bytes]) -> None:
    """Accept JSON and the form type that `curl -d` sends, unless it has an Origin: any web page can send forms."""
    kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    is_from_curl = kind == b"application/x-www-form-urlencoded" and b"origin" not in headers
    if kind != b"application/json" and not is_from_curl:
        raise Refused(415, "a body must be application/json")
    if b"content-encoding" in headers:
        raise Refused(415, "a body must not be compressed")


async def _read_request_body(receive: Receive, most: int) -> bytes:
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


def _checked_request_scope(scope: Message, body: bytes) -> Message:
    """The request for the application, without Origin: a server may let pages of any web site read its answers."""
    left_out = {b"content-length", b"content-type", b"transfer-encoding", b"origin", b"expect"}
    headers = [(name, value) for name, value in scope["headers"] if name not in left_out]
    told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return {**scope, "headers": headers + told}


async def guard_answer_json(send: Send, value: Mapping[str, Any]) -> None:
    await guard_answer(send, "application/json", json.dumps(dict(value)).encode())


async def guard_answer(send: Send, content_type: str, body: bytes) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    await _send_guard_answer(send, HTTPStatus.OK, headers, body)


async def _send_guard_answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
