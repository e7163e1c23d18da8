"""HTTP answers of hosts that may be hostile, bounded before any caller reads them: bytes, seconds, headers, redirects.

`bound_http_client` wraps a client's transports in one that enforces these bounds, so that no user of the client can
forget them. An answer is read whole, within a deadline that begins with its first byte and moves on with its bytes;
the body of a file comes as a stream that must keep a minimum pace. Bytes are counted after decompression. A
`HttpBorder` adds the rules of one host's protocol: which answers are files, and which form each answer must have.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpcore2
import httpx2

from quantyard.formats.names import shown_name

C = TypeVar("C", bound=httpx2.Client)
READING: Final = "quantyard.reading"  # the extension of a request that holds its `Reading`
MAX_REDIRECTS: Final = 5
_SLICE_BYTES: Final = 32 * 1024
_LONGEST_ADDRESS: Final = 8 * 1024
_COUNT: Final = re.compile(r"[0-9]{1,18}")
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_LONGEST_DATE: Final = 64


@dataclass(frozen=True)
class HttpBounds:
    """How much is accepted from a host; the same for every host."""

    answer_bytes: int = 16 * 1024 * 1024
    error_bytes: int = 64 * 1024  # of the body of an error or a redirect; the rest is cut
    unannounced_bytes: int = 1024**3  # of a file whose size was not announced
    answer_s: float = 60.0  # from the first to the last byte of an answer; one more for every `bytes_per_s` bytes
    bytes_per_s: int = 64 * 1024
    window_s: float = 60.0  # a download or upload must move at least `window_bytes` in every window
    window_bytes: int = 64 * 1024
    n_headers: int = 200
    headers_bytes: int = 48 * 1024


BOUNDS = HttpBounds()
# What to say where no client can be made for the proxy that is set, and what to do about it.
UNUSABLE_PROXY: Final = (
    "The proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is not http://, https://, socks5:// or socks5h://",
    "Name one of these: HTTPS_PROXY=http://proxy.example:3128, or ALL_PROXY=socks5h://proxy.example:1080",
)


def is_unusable_proxy(error: BaseException) -> bool:
    """Whether a client could not be made because of the scheme of its proxy."""
    return isinstance(error, ValueError) and "nknown scheme for proxy" in str(error)


class BadAnswer(httpx2.TransportError):
    """An answer that no honest host gives: too large, too slow or malformed. A retry would get the same."""

    def __init__(self, host: str, fault: str) -> None:
        super().__init__(f"{host} {fault}")
        self.host, self.fault = host, fault

    def hide(self, secret: str) -> None:
        """Remove a secret from the message, in case the host echoed it."""
        self.fault = http_text_without_secret(secret, self.fault)
        self.args = (f"{self.host} {self.fault}",)


class TooSlow(BadAnswer):
    """It drips."""


@dataclass(frozen=True)
class Reading:
    """How to read the answer to one request, where the `HttpBorder` does not say.

    Args:
        limit_bytes: the most bytes to accept; None: the limit of `BOUNDS`.
        is_cut: leave the rest unread instead of raising an error.
    """

    limit_bytes: int | None = None
    is_cut: bool = False


class HttpBorder:
    """The rules of one host's protocol. This base class has none."""

    def is_file(self, request: httpx2.Request) -> bool:  # noqa: ARG002 - subclasses use it
        """Whether the answer is a file, to be read as it comes."""
        return False

    def clean(self, request: httpx2.Request, status: int, headers: httpx2.Headers) -> None:
        """Change or remove headers; raises BadAnswer."""

    def content(self, request: httpx2.Request, status: int, content: bytes) -> bytes:  # noqa: ARG002
        """The body of a whole answer, checked; raises BadAnswer."""
        return content


def bound_http_client(client: C, border: HttpBorder) -> C:
    """The client; all its answers are bounded from now on."""
    client.max_redirects = MAX_REDIRECTS
    # httpx2 offers no other place that sees requests by way of a proxy too.
    mounts = client._mounts.items()  # noqa: SLF001
    client._transport = _Guard(client._transport, border)  # noqa: SLF001
    client._mounts = {pattern: kept and _Guard(kept, border) for pattern, kept in mounts}  # noqa: SLF001
    return client


def http_request_host(request: httpx2.Request) -> str:
    """scheme://host[:port], without a user's name or password."""
    return f"{request.url.scheme}://{request.url.netloc.decode('ascii', 'replace')}"


def http_request_secret(request: httpx2.Request) -> str:
    """The request's Authorization header; "" without one."""
    return request.headers.get("Authorization", "").partition(" ")[2]


def http_text_without_secret(secret: str, text: str) -> str:
    """The text without a secret that a host may have sent back."""
    return text.replace(secret, "(the token)") if secret else text


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until a host wants the next request (Retry-After: a number or an HTTP date); None: it does not say."""
    value = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    if not value or len(value) > _LONGEST_DATE:
        return None
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def http_byte_count(text: str | None) -> int | None:
    """A number of bytes in a header; None: it is not a number."""
    return int(text) if text and _COUNT.fullmatch(text) else None


def http_address_fault(text: str, sender: httpx2.URL, *, is_redirect: bool) -> str:
    """Why an address that a host names is refused; "" if it is accepted. It may be relative to `sender`."""
    if len(text) > _LONGEST_ADDRESS:
        return f"an address of {len(text):,} characters"
    if not (text.isascii() and text.isprintable()) or " " in text or "\\" in text:
        return "an address with characters that are not allowed"
    if is_redirect and not text:
        return "an empty address"
    try:
        there = sender.join(text)
        parts = urlsplit(str(there))
        host, port = parts.hostname or "", parts.port
    except (httpx2.InvalidURL, ValueError):
        return "an invalid address"
    labels = host.rstrip(".").split(".")
    if there.scheme not in ("http", "https") or port == 0 or not all(0 < len(label) < 64 for label in labels):
        return "an address that is not http or https"
    if parts.username is not None or parts.password is not None:
        return "an address with a user's name in it"
    leaves_tls = (sender.scheme, there.scheme) == ("https", "http")
    if is_redirect and leaves_tls and there.host != sender.host:  # a host may serve its own storage without TLS
        return "an address without encryption"
    return ""


class _Guard(httpx2.BaseTransport):
    """A transport whose answers are bounded."""

    def __init__(self, inner: httpx2.BaseTransport, border: HttpBorder) -> None:
        self._inner, self._border = inner, border
        pool = getattr(inner, "_pool", None)
        if pool is not None:  # none in a test's transport
            pool._network_backend = _Backend(pool._network_backend)  # noqa: SLF001

    def close(self) -> None:
        self._inner.close()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return self._bounded(request)
        except BadAnswer as error:
            error.hide(http_request_secret(request))
            raise

    def _bounded(self, request: httpx2.Request) -> httpx2.Response:
        watch = _Watch(http_request_host(request), BOUNDS)
        with _watched_connection(watch):
            response = self._inner.handle_request(request)
            try:
                headers = self._headers(request, response)
                reading = request.extensions.get(READING)
                if response.is_success and reading is None and self._border.is_file(request):
                    return _bounded_http_response(response, headers, _File(response, watch))
                content = _bounded_http_body(request, response, reading or Reading(), watch)
            except httpx2.DecodingError as error:
                response.close()
                raise BadAnswer(http_request_host(request), f"sends what cannot be unpacked ({error})") from error
            except BaseException:
                response.close()
                raise
            response.close()
        if reading is None and request.method != "HEAD":
            content = self._border.content(request, response.status_code, content)
        return _bounded_http_response(response, headers, httpx2.ByteStream(content))

    def _headers(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Headers:
        headers, host = httpx2.Headers(response.headers), http_request_host(request)
        size = sum(len(name) + len(value) for name, value in headers.raw)
        if len(headers.raw) > BOUNDS.n_headers or size > BOUNDS.headers_bytes:
            raise BadAnswer(host, f"sends {len(headers.raw):,} headers of {size:,} bytes")
        if "Location" in headers:
            said = headers["Location"]
            if fault := http_address_fault(said, request.url, is_redirect=response.is_redirect):
                raise BadAnswer(host, f"leads to {fault}: {shown_name(said)}")
        _plain_http_retry_after(headers)
        if not headers.get("Set-Cookie", "").isascii():
            headers.pop("Set-Cookie")  # the client could not send it back
        self._border.clean(request, response.status_code, headers)
        if request.method != "HEAD" and "Content-Encoding" in headers:  # the content is decompressed already
            headers.pop("Content-Encoding")
            headers.pop("Content-Length", None)
        return headers


def _plain_http_retry_after(headers: httpx2.Headers) -> None:
    """Give a header that says how long to wait in seconds, or drop it."""
    asked_s = retry_after_s(headers)
    headers.pop("Retry-After", None)
    if asked_s is not None:
        headers["Retry-After"] = str(int(asked_s))
    for name in ("ratelimit", "ratelimit-policy"):
        if name in headers and (not headers[name].isascii() or re.search(r"\d{10}", headers[name])):
            headers.pop(name)


def _bounded_http_response(
    response: httpx2.Response, headers: httpx2.Headers, stream: httpx2.SyncByteStream
) -> httpx2.Response:
    """The response with these headers and body, without the host's reason phrase."""
    kept = {key: value for key, value in response.extensions.items() if key != "reason_phrase"}
    return httpx2.Response(response.status_code, headers=headers, stream=stream, extensions=kept)


def _bounded_http_body(request: httpx2.Request, response: httpx2.Response, reading: Reading, watch: _Watch) -> bytes:
    """The body of an answer: all of it, or only the beginning that the caller wants."""
    limit = BOUNDS.answer_bytes if reading.limit_bytes is None else reading.limit_bytes
    is_cut = reading.is_cut
    if not response.is_success:  # the body of an error or a redirect is only quoted
        limit, is_cut = BOUNDS.error_bytes, True
    blocks, size = [], 0
    for block in response.iter_bytes():
        watch.check()
        blocks.append(block)
        size += len(block)
        if size > limit:
            break
    if size > limit and not is_cut:
        raise BadAnswer(
            http_request_host(request), f"sends more than {limit:,} bytes for {shown_name(request.url.path)}"
        )
    return b"".join(blocks)[:limit]


class _File(httpx2.SyncByteStream):
    """The body of a file: at most the announced length, at the minimum pace or faster."""

    def __init__(self, response: httpx2.Response, watch: _Watch) -> None:
        self._response, self._watch = response, watch
        is_packed = "Content-Encoding" in response.headers
        announced = None if is_packed else http_byte_count(response.headers.get("Content-Length"))
        self._limit = BOUNDS.unannounced_bytes if announced is None else announced
        self._blocks = response.iter_bytes() if is_packed else iter(response.stream)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[bytes]:
        pace, size, host = _Pace(BOUNDS), 0, self._watch.host
        try:
            for block in self._blocks:
                size += len(block)
                if size > self._limit:
                    raise BadAnswer(host, f"sends more than {self._limit:,} bytes of a file")
                if pace.is_lost(len(block)):
                    raise TooSlow(host, f"sends less than {BOUNDS.window_bytes:,} bytes in {BOUNDS.window_s:g} s")
                yield block
        except httpx2.DecodingError as error:
            raise BadAnswer(host, f"sends what cannot be unpacked ({error})") from error

    def close(self) -> None:
        self._response.close()


class _Pace:
    """Whether enough bytes come in every window of time."""

    def __init__(self, bounds: HttpBounds) -> None:
        self._bounds, self._start, self._bytes = bounds, time.monotonic(), 0

    def is_lost(self, n_bytes: int) -> bool:
        """Count these bytes; True: a window ended with too few."""
        self._bytes += n_bytes
        now = time.monotonic()
        if now - self._start <= self._bounds.window_s:
            return False
        is_lost = self._bytes < self._bounds.window_bytes
        self._start, self._bytes = now, 0
        return is_lost


# ---- Below HTTP: an endless header must be stopped too -----------------------------------------------------------


class _Watch:
    """The deadline of one answer, from its first byte on."""

    def __init__(self, host: str, bounds: HttpBounds) -> None:
        self.host, self._bounds, self._first, self._bytes = host, bounds, 0.0, 0

    def left_s(self) -> float | None:
        """Seconds until the deadline; None: nothing has come yet, and the client's own timeout applies."""
        if not self._first:
            return None
        return self._first + self._bounds.answer_s + self._bytes / self._bounds.bytes_per_s - time.monotonic()

    def asked(self) -> None:
        """A request goes out: earlier bytes, perhaps from a proxy, were not the answer to it."""
        self._first, self._bytes = 0.0, 0

    def came(self, n_bytes: int) -> None:
        """So many bytes have come."""
        self._first = self._first or time.monotonic()
        self._bytes += n_bytes

    def check(self) -> None:
        """Raise TooSlow where the deadline is over."""
        left_s = self.left_s()
        if left_s is not None and left_s <= 0:
            raise TooSlow(self.host, f"takes longer than {self._bounds.answer_s:g} s for one answer")


class _Watched(threading.local):
    """The answer that this thread waits for."""

    watch: _Watch | None = None


_WATCHED = _Watched()


@contextmanager
def _watched_connection(watch: _Watch) -> Iterator[None]:
    before, _WATCHED.watch = _WATCHED.watch, watch
    try:
        yield
    finally:
        _WATCHED.watch = before


class _Backend(httpcore2.NetworkBackend):
    """Connects like the wrapped backend, and watches what is read and written."""

    def __init__(self, inner: httpcore2.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        try:
            return _Stream(self._inner.connect_tcp(host, port, *args, **kwargs))
        except UnicodeError as error:  # a name with a part that is too long for DNS
            raise httpcore2.ConnectError(f"{shown_name(host)} is not a host name") from error

    def connect_unix_socket(self, path: str, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        return _Stream(self._inner.connect_unix_socket(path, *args, **kwargs))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    """A connection with a deadline for each answer, so that a slow drip ends too."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        watch = _WATCHED.watch
        if watch is None:
            return self._inner.read(max_bytes, timeout)
        watch.check()
        left_s = watch.left_s()
        if left_s is not None and (timeout is None or left_s < timeout):
            timeout = left_s
        try:
            data = self._inner.read(max_bytes, timeout)
        except httpcore2.ReadTimeout:
            watch.check()
            raise
        watch.came(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if _WATCHED.watch is not None:
            _WATCHED.watch.asked()
        pace, view = _Pace(BOUNDS), memoryview(buffer)
        for start in range(0, len(view), _SLICE_BYTES):
            part = view[start : start + _SLICE_BYTES]
            self._inner.write(part, timeout)  # type: ignore[arg-type]  # it accepts any buffer
            if pace.is_lost(len(part)):
                raise httpcore2.WriteTimeout(f"less than {BOUNDS.window_bytes:,} bytes in {BOUNDS.window_s:g} s")

    def close(self) -> None:
        self._inner.close()

    def start_tls(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        return _Stream(self._inner.start_tls(*args, **kwargs))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
