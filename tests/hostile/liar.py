"""How a server lies over HTTP. `Lie.tell` writes a whole answer in the place of the one that a small server of the
tests would give; the lists of lies are in test_lying_hub.py and test_lying_registry.py.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from itertools import islice, repeat
from typing import Any, TypeVar

from quantyard.network.bounded_http import HttpBounds

E = TypeVar("E", bound=Exception)
Handler = BaseHTTPRequestHandler
# As the product's own bounds, but that a test can wait for them.
QUICK = HttpBounds(
    answer_bytes=2_000_000, error_bytes=64_000, unannounced_bytes=4_000_000, answer_s=0.3, bytes_per_s=10_000_000,
    window_s=0.3, window_bytes=64_000,
)
ENDLESS_BLOCKS = 4_000  # of 64 KiB each: what no client may take
BLOCK = b" " * 65_536
SOON_S = 8.0  # deadlines are 0.3 s here; the rest is a busy machine, and a silent server asked four times


@dataclass(frozen=True)
class Lie:
    """One lie. `is_harmless`: a client may get along with it."""

    name: str
    tell: Callable[[Handler], None]
    is_harmless: bool = False

    def __str__(self) -> str:
        return self.name


def says(name: str, body: Any, status: int = 200, *, is_harmless: bool = False, **headers: str) -> Lie:
    """A whole answer: bytes as they are, everything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    lines |= {key.replace("_", "-"): value for key, value in headers.items()}
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items()).encode("latin-1")
    return Lie(name, lambda handler: _write(handler, [_status(status), head, b"\r\n", content]), is_harmless)


def sends(name: str, head: bytes, blocks: Callable[[], Iterator[bytes]], pause_s: float = 0.0) -> Lie:
    """A head as it stands, and then blocks, as long as the client takes them."""
    return Lie(name, lambda handler: _write(handler, [head], blocks(), pause_s))


def endless(name: str, head: bytes, block: bytes = BLOCK) -> Lie:
    """A body without an end."""
    return sends(name, head, lambda: islice(repeat(block), ENDLESS_BLOCKS))


def dripping(name: str, head: bytes, block: bytes = b" ") -> Lie:
    """A byte now and then, for ten seconds."""
    return sends(name, head, lambda: islice(repeat(block), 200), 0.05)


def bomb(name: str, encoding: str) -> Lie:
    """A body that is small, and a thousand times as large once it is unpacked, without an end."""
    return sends(name, ok(f"Content-Encoding: {encoding}"), lambda: packed(encoding))


def packed(encoding: str) -> Iterator[bytes]:
    """Endless spaces, packed by these codings one after another."""
    packers = [zlib.compressobj(1, zlib.DEFLATED, 31 if name == "gzip" else 15) for name in encoding.split(", ")]
    for block in islice(repeat(b" " * 1_000_000), ENDLESS_BLOCKS):
        for packer in packers:
            block = packer.compress(block) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield block


def ok(*headers: str, status: str = "200 OK") -> bytes:
    """The head of an answer whose body ends with the connection."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def raw(name: str, answer: bytes, *, is_harmless: bool = False) -> Lie:
    """Bytes as they stand, and the connection closes."""
    return Lie(name, lambda handler: _write(handler, [answer]), is_harmless)


def _status(status: int) -> bytes:
    return f"HTTP/1.1 {status} So\r\n".encode()


def _write(handler: Handler, first: list[bytes], blocks: Iterable[bytes] = (), pause_s: float = 0.0) -> None:
    handler.close_connection = True
    with suppress(OSError):  # the client has heard enough
        handler.wfile.write(b"".join(first))
        for block in blocks:
            handler.wfile.write(block)
            if pause_s:
                threading.Event().wait(pause_s)


# ---- Lies that any server can tell -------------------------------------------------------------------------------

DEEP = b"[" * 100_000
HALF = b'{"a": "\\ud800"}'
# Texts that are no JSON anybody could use.
TEXTS = (
    ("nothing", b""), ("null", b"null"), ("a number", b"7"), ("a list", b"[]"), ("cut off", b'{"id": "org/na'),
    ("a login page", b"<html><title>Sign in to the wireless network</title>"), ("deep", DEEP),
    ("deep objects", b'{"a":' * 50_000), ("a surrogate", HALF), ("a key twice", b'{"id": "a/b", "id": "c/d"}'),
    ("NaN", b'{"id": NaN}'), ("infinity", b'{"size": 1e999}'), ("an integer of 5,000 digits", b"1" * 5000),
    ("latin-1", '{"id": "café"}'.encode("latin-1")), ("a million lists", b"[" + b"[]," * 600_000 + b"[]]"),
    ("zeros", bytes(1000)), ("UTF-16", '{"id": "a"}'.encode("utf-16")),
)  # fmt: skip
WAITS = ("²", "1" * 400, "-5", "1e9", "٣", "Wed, 21 Oct 9999 07:28:00 GMT", "Fri, 99 Foo 99999 99:99:99", "NaN", "")


def any_text() -> list[Lie]:
    """Bodies that are no answer."""
    return [says(f"text: {name}", body) for name, body in TEXTS]


def any_body() -> list[Lie]:
    """Bodies and heads without an end, too large, or unpackable."""
    return [
        endless("endless body", ok()),
        endless("endless list", ok(), b"[" + b"1," * 30_000),
        endless("endless chunks", ok("Transfer-Encoding: chunked"), b"10000\r\n" + BLOCK + b"\r\n"),
        endless("endless chunk extension", ok("Transfer-Encoding: chunked") + b"1;", BLOCK),
        endless("endless header", b"HTTP/1.1 200 OK\r\nX-A: "),
        endless("endless headers", b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 5_000),
        endless("endless 100 Continue", b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 3_000),
        raw("too many headers", ok(*(f"X-{n}: a" for n in range(1_000))) + b"{}"),
        raw("too long headers", ok(*(f"X-{n}: {'a' * 9_000}" for n in range(8))) + b"{}"),
        bomb("gzip bomb", "gzip"), bomb("deflate bomb", "deflate"), bomb("gzip in gzip", "gzip, gzip"),
        bomb("deflate in gzip in gzip", "deflate, gzip, gzip"),
        raw("seven codings", ok(f"Content-Encoding: {'gzip, ' * 6}gzip") + zlib.compress(b"{}")),
        raw("not packed at all", ok("Content-Encoding: gzip") + b"{}"),
        dripping("dripping body", ok()), dripping("dripping header", b"HTTP/1.1 200 OK\r\nX-A: "),
        dripping("dripping chunks", ok("Transfer-Encoding: chunked"), b"1\r\n \r\n"),
        dripping("dripping gzip", ok("Content-Encoding: gzip"), zlib.compress(b"")[:1]),
        raw("no HTTP", b"SSH-2.0-OpenSSH_9.9\r\n"), raw("no answer", b""),
        raw("status 99999", b"HTTP/1.1 99999 x\r\n\r\n"),
        raw("two lengths", ok("Content-Length: 2", "Content-Length: 3") + b"{}"),
        raw("a length that is none", ok("Content-Length: ²") + b"{}"),
        raw("a length below zero", ok("Content-Length: -1") + b"{}"),
        raw("a length of 400 digits", ok(f"Content-Length: {'1' * 400}") + b"{}"),
        raw("shorter than it says", ok("Content-Length: 5000") + b"{}"),
        endless("a long reason", b"HTTP/1.1 500 ", b"a" * 1_000),
    ]  # fmt: skip


LOCATIONS = (
    "", "//", "http://", "http://[::1", "http://x:99999/", "http://x:²/", "http://x:0/", "file:///etc/passwd",
    "javascript:alert(1)", "ftp://127.0.0.1/x", "http://hf_me@127.0.0.1:9/", "http://a\x7fb/", "http://\xe9.example/\xff",
    f"http://{'a' * 64}.example/", "http://a..example/", "/" + "a" * 20_000, "\\\\127.0.0.1\\x", "http:// /",
    "http://xn--a/", "gopher:x", "http://[fe80::1%25eth0]x/",
)  # fmt: skip


def any_location(status: int) -> list[Lie]:
    """Where nobody can go."""
    return [raw(f"Location {text[:40]!r}", _moved(status, text)) for text in LOCATIONS]


def _moved(status: int, location: str) -> bytes:
    return ok(f"Location: {location}", "Content-Length: 2", status=f"{status} Moved") + b"{}"


def any_wait(status: int) -> list[Lie]:
    """How long to wait, in no form that is one, or for longer than anybody lives."""
    body = {"error": "slow down", "errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}
    encoded = [(text, text.encode().decode("latin-1")) for text in WAITS]
    return [says(f"Retry-After {text[:20]!r}", body, status, Retry_After=value) for text, value in encoded]


def any_error(status: int) -> list[Lie]:
    """Bodies of errors that are none."""
    odd: list[Any] = [
        [], 7, None, {"error": 7}, {"error": {"a": [1]}}, {"error": ["a", {"b": 1}]}, {"errors": 5}, {"errors": [7]},
        {"errors": [{"message": {"a": 1}, "code": []}]}, {"error": "a" * 50_000},
        {"errors": [{"message": "m"}] * 5_000},
        {"error": "\x1b]0;owned\x07\x1b[2J"},
    ]  # fmt: skip
    lies = [says(f"error {json.dumps(body)[:40]}", body, status) for body in odd]
    lies += [says(f"error text: {name}", body, status) for name, body in TEXTS]
    head = ok(status=f"{status} No")
    lies += [endless("endless error", head), sends("bomb of an error", _gzip(head), lambda: packed("gzip"))]
    return [*lies, dripping("dripping error", head)]


def _gzip(head: bytes) -> bytes:
    return head.removesuffix(b"\r\n") + b"Content-Encoding: gzip\r\n\r\n"


def error_of(call: Callable[[], object], kind: type[E], *, may_pass: bool) -> E | None:
    """The error of this kind that the call ends with soon; None where it may pass, and does."""
    begun = time.monotonic()
    try:
        call()
    except kind as error:
        return error
    finally:
        assert time.monotonic() - begun < SOON_S
    assert may_pass, "the lie was believed"
    return None
