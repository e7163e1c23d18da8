"""Checks of a served model against hostile clients: each attacks the server, then sends an ordinary request.

This module does not see the server's process; `ServedModel.check_alive` notices when it has ended.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Final
from urllib.parse import urlsplit

from quantyard.formatting.numbers import format_elapsed
from server.api_checks.launch import Answer
from server.api_checks.session import (
    CHAT,
    COMPLETION,
    EXCERPT,
    ApiSession,
    api_error_text,
    need_promise,
    shown_api_answer,
)
from server.limits.request_rules import LIMITS

HALF_OPEN: Final = 700
SLOW_BODIES: Final = 50
ENDED_WITHIN_S: Final = 30.0  # a connection that sends nothing or stops sending
ANSWERED_WITHIN_S: Final = 30.0  # an ordinary request of one token during or after an attack, on a slow machine
_CONNECT_TIMEOUT_S: Final = 10.0
_TOO_LARGE: Final = (50_000_000, 413)  # bytes of a body, and the status

# To close a route: add its method and path. Routes that change a server or show others' requests must stay closed.
_CLOSED: Final = (
    ("POST", "/models"), ("POST", "/models/unload"), ("DELETE", "/models/any"),
    ("POST", "/props"), ("GET", "/slots"), ("POST", "/slots/0?action=erase"), ("POST", "/lora-adapters"),
    ("GET", "/openapi.json"), ("GET", "/docs"), ("POST", "/infill"), ("PUT", CHAT), ("DELETE", CHAT),
)  # fmt: skip

# To add a grammar or a schema: add a name and a function that makes it. Each of these crashed or stalled a parser.
_GRAMMARS: Final[dict[str, Callable[[], str]]] = {
    "30,000 brackets": lambda: "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000,
    "100 optional letters in a row": lambda: "root ::= " + '"a"? ' * 100,
    "100 optional rules in a row": lambda: "root ::= " + "r " * 100 + '\nr ::= "a"?',
    "repeats in repeats": lambda: 'root ::= ((("a"{1,100}){1,100}){1,100}){1,100}',
    "a rule that begins with itself": lambda: 'root ::= root "a" | "b"',
    "a grammar that ends early": lambda: "root ::= (",
}
_SCHEMAS: Final[dict[str, Callable[[], Any]]] = {
    "maxLength of 10 million": lambda: {"type": "string", "maxLength": 10**7},
    "200 optional properties": lambda: {"type": "object", "properties": {f"p{n}": {} for n in range(200)}},
    "100 levels": lambda: json.loads('{"items":' * 100 + "{}" + "}" * 100),
    "2^22 parts by references": lambda: {"$ref": "#/$defs/d0", "$defs": {"d22": {"type": "null"}, **{
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(22)}}},
    "a pattern of 200 optional letters": lambda: {"type": "string", "pattern": "^" + "a?" * 200 + "$"},
}  # fmt: skip


def check_slow_clients(session: ApiSession) -> str:
    """Open all connections at once, so that the time limit passes only once."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    key = f"Authorization: Bearer {session.wire.key}\r\n"
    said = [head[: number % len(head)] for number in range(HALF_OPEN)]
    said += [f"{head}{key}Content-Length: 1000\r\n\r\n{{"] * SLOW_BODIES
    with ExitStack() as opened:
        connections = [opened.enter_context(_connect_to_abuse(session)) for _ in said]
        began = time.monotonic()
        for connection, words in zip(connections, said, strict=True):
            with suppress(OSError):  # the server may have ended it already, to make room for others
                connection.sendall(words.encode())
        beside_s = _check_ordinary_request(session, f"while {len(said)} connections are idle")
        for number, connection in enumerate(connections):
            is_ended = _is_connection_ended(connection, began + ENDED_WITHIN_S - time.monotonic())
            need_promise(
                is_ended, f"{len(said) - number} of {len(said)} connections are open after {ENDED_WITHIN_S:g} s"
            )
        ended_s = time.monotonic() - began
    counted = f"{HALF_OPEN} half-open connections and {SLOW_BODIES} slow bodies"
    return f"{counted} ended in {format_elapsed(ended_s)}, and others were answered in {format_elapsed(beside_s)}"


def _connect_to_abuse(session: ApiSession) -> socket.socket:
    address = urlsplit(session.wire.address)
    return socket.create_connection((address.hostname, address.port or 80), _CONNECT_TIMEOUT_S)


def _is_connection_ended(connection: socket.socket, within_s: float) -> bool:
    connection.settimeout(max(0.01, within_s))
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def check_large_body(session: ApiSession) -> str:
    n_bytes, status = _TOO_LARGE
    answer = session.wire.post_text(CHAT, json.dumps(session.chat_body("a" * n_bytes)))
    need_promise(answer.status == status, f"a body of {n_bytes} bytes: wanted {status}, got {shown_api_answer(answer)}")
    return f"{status}: {api_error_text(answer)[:EXCERPT]}; {_served_afterwards(session)}"


def check_closed_routes(session: ApiSession) -> str:
    for method, path in _CLOSED:
        answer = session.wire.send(method, path, "" if method == "GET" else "{}")
        need_promise(answer.status in {404, 405}, f"{method} {path}: wanted 404 or 405, got {shown_api_answer(answer)}")
    return f"404 or 405 for {len(_CLOSED)} routes"


def check_hostile_grammars(session: ApiSession) -> str:
    for name, made in _GRAMMARS.items():
        _need_abuse_refused(name, session.wire.post(COMPLETION, {"prompt": "a", "max_tokens": 4, "grammar": made()}))
    return f"400 for {len(_GRAMMARS)} of them; {_served_afterwards(session)}"


def check_hostile_schemas(session: ApiSession) -> str:
    for name, made in _SCHEMAS.items():
        for form in _hostile_schema_forms(made()):
            _need_abuse_refused(name, session.chat("a", max_tokens=4, **form))
    return f"400 for {len(_SCHEMAS)} of them, as response_format and as a tool; {_served_afterwards(session)}"


def _hostile_schema_forms(schema: Any) -> Iterator[dict[str, Any]]:
    yield {"response_format": {"type": "json_object", "schema": schema}}
    yield {"tools": [{"type": "function", "function": {"name": "f", "description": "", "parameters": schema}}]}


def check_large_tokenize(session: ApiSession) -> str:
    most = LIMITS["text_bytes"].most
    text = "a b " * (most // 4 + 1)
    answer = session.wire.post("/tokenize", {"content": text})
    if answer.status == 404:
        return "the server has no route that tokenizes"
    _need_abuse_refused(f"{len(text)} characters", answer)
    return f"400 for {len(text)} characters, the limit is {most} bytes; {_served_afterwards(session)}"


def _need_abuse_refused(name: str, answer: Answer) -> None:
    need_promise(
        answer.status == 400 and bool(api_error_text(answer)),
        f"{name}: wanted 400 with a reason, got {shown_api_answer(answer)}",
    )


def _served_afterwards(session: ApiSession) -> str:
    return f"then answered in {format_elapsed(_check_ordinary_request(session, 'afterwards'))}"


def _check_ordinary_request(session: ApiSession, when: str) -> float:
    """Check an ordinary request of one token; returns the seconds it took."""
    answer = session.ask("Hello", max_tokens=1)
    need_promise(answer.status == 200, f"{when} an ordinary request gets {shown_api_answer(answer)}")
    need_promise(
        answer.duration_s <= ANSWERED_WITHIN_S, f"{when} an ordinary request takes {format_elapsed(answer.duration_s)}"
    )
    return answer.duration_s
