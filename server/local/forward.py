"""Forwards requests over HTTP: an ASGI application in front of another server, such as a `ModelProcess`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, quote

import httpx2

from server.local.guard import Message, Receive, Refused, Send

_CONNECT_S: Final = 5.0
# To pass on one more header of a request or an answer: add it, in lower case.
_OF_REQUESTS: Final = (b"accept", b"content-type", b"anthropic-version", b"anthropic-beta", b"if-none-match")
_OF_ANSWERS: Final = (
    "content-type", "content-length", "retry-after", "content-encoding", "etag", "cache-control",
    "cross-origin-embedder-policy", "cross-origin-opener-policy",
)
_ENCODINGS: Final = b"accept-encoding"
_UNENDING: Final = httpx2.Timeout(None, connect=_CONNECT_S)  # the guard limits how long an answer may take


def forwarding_client() -> httpx2.AsyncClient:
    """A client without keep-alive: llama-server closes idle connections, and a request on a closing one is lost.

    trust_env=False: proxies from the environment must not see requests.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncClient(limits=limits, timeout=_UNENDING, trust_env=False)


@dataclass(frozen=True)
class Forward:
    """An ASGI application: the server at `address` answers, asked with `key`. Streams are passed on as they come.

    The whole body must be the first message. Once the call is cancelled, the connection is closed, by which the server
    notices that nobody waits for its answer.

    Raises:
        Refused: 503, the server does not answer, or not to the end.
    """

    address: str
    key: str
    client: httpx2.AsyncClient

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name in _OF_REQUESTS]
        headers.append((_ENCODINGS, dict(scope["headers"]).get(_ENCODINGS, b"identity")))  # the client's, not ours
        body = (await receive()).get("body", b"")
        request = self.client.build_request(
            scope["method"], f"{self.address}{scope['path']}{_query_forwarded_to_model(scope)}", content=body,
            headers=[*headers, (b"authorization", f"Bearer {self.key}".encode()), (b"connection", b"close")],
        )  # fmt: skip
        try:
            answer = await self.client.send(request, stream=True)
            try:
                await _pass_answer_on(answer, send)
            finally:
                await answer.aclose()
        except httpx2.TransportError:
            raise Refused(503, "the model's server ended or does not answer: try again later") from None


async def _pass_answer_on(answer: httpx2.Response, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items() if name in _OF_ANSWERS]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    async for piece in answer.aiter_raw():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def model_in_query(scope: Message) -> str:
    """The model that the query names; "": none."""
    query: str = scope.get("query_string", b"").decode("latin-1")
    return parse_qs(query).get("model", [""])[0]


def _query_forwarded_to_model(scope: Message) -> str:
    """Only the model's name is passed on."""
    name = model_in_query(scope)
    return f"?model={quote(name)}" if name else ""
