"""The checks in front of the local server's application, as an ASGI application around one that notes what it sees."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

import server.local.guard as module
from quantyard.paths import REPO_DIR
from server.limits.request_rules import LIMITS
from server.local.guard import OPEN, PAGE, ROUTES, Guard, Message, Receive, Refused, Send

KEY = "the-right-key"
CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()


@dataclass
class Application:
    """Answers 200, and keeps what reached it."""

    seen: list[tuple[str, dict[bytes, bytes], bytes]] = field(default_factory=list)
    waits: bool = False
    fails: Exception | None = None
    is_cancelled: bool = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        self.seen.append((scope["path"], dict(scope["headers"]), body))
        if self.fails:
            raise self.fails
        if self.waits:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.is_cancelled = True
                raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def ask(
    guard: Guard, method: str = "POST", path: str = CHAT, pieces: Iterable[bytes | None] = (BODY,),
    key: str | None = KEY, leaves: bool = False, **headers: str,
) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:  # fmt: skip
    """Status, body and headers of one request; a piece that is None never comes."""
    told = {"authorization": f"Bearer {key}"} if key is not None else {}
    named = [(n.replace("_", "-").encode(), v.encode()) for n, v in (told | headers).items()]
    sent: list[Message] = []
    left = list(pieces)

    async def receive() -> Message:
        if left and left[0] is not None:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}
        if left or not leaves:
            await asyncio.sleep(30)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Message = {"type": "http", "method": method, "path": path, "headers": named}
    asyncio.run(guard(scope, receive, send))
    if not sent:
        return 0, {}, {}
    start, body = sent[0], b"".join(message.get("body", b"") for message in sent[1:])
    return start["status"], json.loads(body or b"{}"), dict(start["headers"])


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def guard(application: Application) -> Guard:
    return Guard(application, KEY)


@pytest.mark.parametrize("key", [None, "", "wrong", KEY[:-1], KEY + "x", "Bearer " + KEY])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/props", "/nowhere", "/extras/tokenize"])
def test_without_the_key_nothing_is_told_apart(
    guard: Guard, application: Application, key: str | None, path: str
) -> None:
    status, body, headers = ask(guard, path=path, key=key)
    assert status == 401 and body["error"]["type"] == "authentication_error" and not application.seen
    assert headers[b"www-authenticate"] == b"Bearer"


def test_without_the_key_no_body_is_read(guard: Guard) -> None:
    assert ask(guard, key="wrong", pieces=(None,))[0] == 401


def test_the_health_is_open(guard: Guard) -> None:
    assert ask(guard, "GET", "/health", key=None)[0] == 200


def test_a_key_may_come_as_anthropics_client_sends_it(guard: Guard) -> None:
    assert ask(guard, key=None, x_api_key=KEY)[0] == 200
    assert ask(guard, key=None, x_api_key="wrong")[0] == 401


def test_the_routes_are_those_of_the_proxy() -> None:
    text = (REPO_DIR / "server" / "proxy" / "routes.js").read_text()
    rows = re.findall(r"^    '(/[^']*)': \{(GET|POST): '[a-z]+'(, open: true)?\},(?: //.*)?$", text, re.MULTILINE)
    assert {path: method for path, method, _ in rows} == {
        path: "POST" if "POST" in methods else "GET" for path, methods in ROUTES.items()
    }
    assert {path for path, _, is_open in rows if is_open} == OPEN
    page = re.search(r"^const PAGE = /\^(.*)\$/;$", text, re.MULTILINE)
    assert page and page[1].replace("\\/", "/") == PAGE.pattern


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/openapi.json", 404), ("GET", "/docs", 404), ("POST", "/extras/tokenize", 404),
        ("POST", "/infill", 404), ("GET", "/slots", 404), ("POST", "/models/unload", 404), ("POST", "/", 405),
        ("DELETE", CHAT, 405), ("GET", CHAT, 405), ("POST", "/v1/models", 405), ("POST", "/v1//models", 404),
    ],
)  # fmt: skip
def test_only_what_is_promised_is_reached(
    guard: Guard, application: Application, method: str, path: str, status: int
) -> None:
    answer = ask(guard, method, path)
    assert answer[0] == status and answer[1]["error"]["code"] == status and not application.seen


def test_the_application_sees_what_was_checked_and_no_origin(guard: Guard, application: Application) -> None:
    twice = b'{"messages": [], "n": 1000, "n": 1}'
    headers = {"origin": "http://elsewhere.example", "content_type": "application/json", "content_length": "35"}
    assert ask(guard, pieces=(twice,), **headers)[0] == 200
    (path, seen, body), = application.seen
    assert path == CHAT and json.loads(body) == {"messages": [], "n": 1}
    assert b"origin" not in seen and int(seen[b"content-length"]) == len(body)


def test_a_body_in_pieces_is_one(guard: Guard, application: Application) -> None:
    assert ask(guard, pieces=(BODY[:9], b"", BODY[9:]))[0] == 200
    assert json.loads(application.seen[0][2])["messages"][0]["content"] == "Hi"


def test_a_body_that_is_too_large_is_refused_with_both_sizes(guard: Guard, application: Application) -> None:
    piece = b"a" * (1 << 20)
    status, body, _ = ask(guard, pieces=[piece] * 50)
    assert status == 413 and not application.seen
    most = LIMITS["body_bytes"].most
    assert "52428800 bytes" in body["error"]["message"] and str(most) in body["error"]["message"]
    assert ask(guard, pieces=[BODY.ljust(most)])[0] == 200
    assert ask(guard, pieces=[BODY.ljust(most), b" "])[0] == 413


def test_a_body_that_stops_coming_is_refused(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_S", 0.05)
    assert ask(guard, pieces=(BODY[:9], None))[0] == 408


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "text/plain"}, 415), ({"content_type": "multipart/form-data; boundary=b"}, 415),
        ({"content_encoding": "gzip"}, 415), ({"content_type": "application/json; charset=utf-8"}, 200), ({}, 200),
        ({"content_type": "application/x-www-form-urlencoded"}, 200),
        ({"content_type": "application/x-www-form-urlencoded", "origin": "http://elsewhere.example"}, 415),
    ],
)  # fmt: skip
def test_a_body_says_that_it_is_json(guard: Guard, headers: dict[str, str], status: int) -> None:
    assert ask(guard, **headers)[0] == status


def test_what_the_rules_refuse_does_not_reach_the_application(guard: Guard, application: Application) -> None:
    assert ask(guard, pieces=(b'{"n": 1000}',))[0] == 400
    for content in ("a" * (LIMITS["text_bytes"].most + 1), ["a" * LIMITS["text_bytes"].most, "a"]):
        assert ask(guard, path="/tokenize", pieces=(json.dumps({"content": content}).encode(),))[0] == 400
    assert not application.seen


def test_too_many_requests_at_once_are_told_to_come_later(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUESTS", 0)
    status, body, headers = ask(guard)
    assert status == 429 and body["error"]["type"] == "rate_limit_error" and int(headers[b"retry-after"]) > 0
    monkeypatch.setattr(module, "REQUESTS", 1)
    assert [ask(guard)[0] for _ in range(3)] == [200, 200, 200]


def test_the_application_ends_when_its_client_leaves(guard: Guard, application: Application) -> None:
    application.waits = True
    assert ask(guard, leaves=True)[0] == 0 and application.is_cancelled


@pytest.mark.parametrize(("error", "status"), [(Refused(503, "not now"), 503), (KeyError("x"), 500)])
def test_an_error_of_the_application_is_answered_in_the_apis_form(
    guard: Guard, application: Application, error: Exception, status: int
) -> None:
    application.fails = error
    assert ask(guard)[1]["error"]["code"] == status
    application.fails = None
    assert ask(guard)[0] == 200


def test_an_answer_that_comes_too_late_is_an_error(
    guard: Guard, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.05)
    application.waits = True
    status, body, _ = ask(guard)
    assert status == 504 and body["error"]["type"] == "timeout_error" and application.is_cancelled


@pytest.mark.parametrize(("kind", "has_event"), [
    (b"text/event-stream", True), (b"text/event-stream; charset=utf-8", True), (b"application/json", False),
])  # fmt: skip
@pytest.mark.parametrize("fails", [Refused(503, "its server ended"), ValueError("a fault")])
def test_a_stream_that_breaks_ends_with_an_error_and_any_other_answer_before_its_end(
    kind: bytes, has_event: bool, fails: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Message] = []

    async def breaks(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b"data: {}", "more_body": True})
        raise fails

    pieces = [BODY]

    async def receive() -> Message:
        if not pieces:
            await asyncio.sleep(30)  # its client waits
        return {"type": "http.request", "body": pieces.pop()}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Guard(breaks, None)({"type": "http", "method": "POST", "path": CHAT, "headers": []}, receive, send))
    assert any(not message.get("more_body") for message in sent[1:]) == has_event
    if has_event:
        event, data = sent[-1]["body"].decode().strip().split("\n")
        assert event == "event: error" and json.loads(data.removeprefix("data: "))["error"]["message"]


def test_without_a_key_of_its_own_everybody_is_let_in(application: Application) -> None:
    assert ask(Guard(application, None), key=None)[0] == 200
