"""Downloads one file of a Hub repo, resuming after every broken connection, on the host or in the stage `fetch`.

huggingface_hub's own `hf_hub_download` (2.4) writes to a name that is new in every process and deletes it when
it fails, so a killed download starts again from zero; and it resumes a failing connection without end. So the
loop is ours, over huggingface_hub's client (bounded: hub_client.py), headers and errors. That client (httpx2)
reads HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE itself; SSL_CERT_FILE takes the place of the system's authorities
rather than adding to them.
A redirect to another host (the CDN) is followed without the token.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public by its documentation

from quantyard.network.bounded_http import BadAnswer, TooSlow, retry_after_s
from quantyard.network.hub_client import LONGEST_WAIT_S, use_bounded_hub_client
from quantyard.protocol.base import FileEntry

TRIES = 5
FIRST_WAIT_S = 0.5  # doubled for each further try
WORTH_BYTES = 1024 * 1024  # a try that brought this much resets the count of tries
PIECE_BYTES = 16 * 1024**3  # CDNs refuse bodies over 50 GB, so larger files come in ranges
TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524})
_BLOCK_BYTES = 4 * 1024 * 1024


class DownloadStopped(Exception):
    """Another file failed, so this download stopped; its part stays for the next run."""


class EndedEarly(Exception):
    """The body was shorter than the file."""


class WrongContent(Exception):
    """The file that arrived differs from the one the Hub listed: it is longer, or has another SHA-256."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, got


@dataclass
class DownloadMeter:
    """Counts the bytes of all files together; safe to use from several threads."""

    report: Callable[[int], None]
    resumed_bytes: int = 0
    downloaded_bytes: int = 0
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def resumed(self, count: int) -> None:
        """Bytes an earlier run left here."""
        self._add(count)
        with self._lock:
            self.resumed_bytes += count

    def arrived(self, count: int) -> None:
        """Bytes from the network."""
        self._add(count)
        with self._lock:
            self.downloaded_bytes += count

    def dropped(self, count: int) -> None:
        """Bytes discarded: they must be downloaded again."""
        self._add(-count)

    def _add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self.report(self._done)


@dataclass(frozen=True)
class DownloadLine:
    """What all downloads of one stage share."""

    headers: Mapping[str, str] = field(repr=False)  # the token is among them
    meter: DownloadMeter
    stop: threading.Event
    log: Callable[[str], None]


class _Part:
    """The file being written: its bytes so far and the SHA-256 of them."""

    def __init__(self, path: Path, entry: FileEntry, meter: DownloadMeter) -> None:
        self.entry, self.meter = entry, meter
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = path.open("r+b" if path.exists() else "w+b")
        self.digest, self.size = hashlib.sha256(), 0
        self._continue()

    def _continue(self) -> None:
        """Resume from an earlier run, but only if the hash is known: otherwise a wrong beginning would go unnoticed."""
        if self.entry.sha256 is None:
            self.stream.truncate(0)
        while block := self.stream.read(_BLOCK_BYTES):
            self.digest.update(block)
            self.size += len(block)
        if self.size > self.entry.size_bytes:
            self.clear()
        else:
            self.meter.resumed(self.size)

    def clear(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()
        self.digest, self.size = hashlib.sha256(), 0

    def restart(self) -> None:
        """Discard the bytes so far."""
        self.meter.dropped(self.size)
        self.clear()

    def write(self, block: bytes) -> None:
        if self.size + len(block) > self.entry.size_bytes:
            raise WrongContent(f"{self.entry.size_bytes:,} bytes", "more")
        self.stream.write(block)
        self.digest.update(block)
        self.size += len(block)
        self.meter.arrived(len(block))

    def check(self) -> str:
        """SHA-256 (hex) of the whole file, once it is safely on disk."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        got = self.digest.hexdigest()
        if self.entry.sha256 not in (None, got):
            raise WrongContent(f"SHA-256 {self.entry.sha256}", got)
        return got


def download_file(url: str, entry: FileEntry, path: Path, line: DownloadLine) -> str:
    """Download `url` to `path`, going on from what is there already.

    Returns:
        SHA-256 (hex) of the file.

    Raises:
        WrongContent: it is not the file listed; `path` is removed, and its bytes are no longer counted.
        HfHubHTTPError, httpx2.HTTPError, EndedEarly: it failed, also after retries where they could help.
        Stopped: `line.stop` was set.
        OSError: it could not be written.
    """
    use_bounded_hub_client()
    part = _Part(path, entry, line.meter)
    try:
        with part.stream:
            _download_part(part, url, line)
            return part.check()
    except WrongContent:
        line.meter.dropped(part.size)
        path.unlink(missing_ok=True)
        raise


def _download_part(part: _Part, url: str, line: DownloadLine) -> None:
    failed, worth = 0, part.size + WORTH_BYTES
    while part.size < part.entry.size_bytes:
        try:
            _receive_download_part(part, url, line)
        except (httpx2.TransportError, HfHubHTTPError, EndedEarly) as error:
            if part.size >= worth:
                failed, worth = 0, part.size + WORTH_BYTES
            failed += 1
            wait_s = download_pause_s(error, failed)
            if wait_s is None:
                raise
            line.log(f"{part.entry.path}: {_first_line_of_transfer_error(error)}; going on in {wait_s:g} s")
            if line.stop.wait(wait_s):
                raise DownloadStopped from error


def _receive_download_part(part: _Part, url: str, line: DownloadLine) -> None:
    """Make one request and write what it brings."""
    end = min(part.size + PIECE_BYTES, part.entry.size_bytes)
    headers = {**line.headers, "Accept-Encoding": "identity"}
    if part.size or end < part.entry.size_bytes:
        headers["Range"] = f"bytes={part.size}-{end - 1}"
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # the part on disk cannot belong to that file
            part.restart()
        hf_raise_for_status(response)
        if part.size and not _does_response_continue_part(response, part.size):
            part.restart()
            if response.status_code == 206:
                raise EndedEarly("the answer has another range than requested")
        for block in response.iter_bytes():
            if line.stop.is_set():
                raise DownloadStopped
            part.write(block)
    if part.size < end:
        raise EndedEarly(f"the body ended at {part.size:,} of {part.entry.size_bytes:,} bytes")


def _does_response_continue_part(response: httpx2.Response, size_bytes: int) -> bool:
    given = response.headers.get("Content-Range", "")
    return response.status_code == 206 and given.startswith(f"bytes {size_bytes}-")


def download_pause_s(error: Exception, failed: int) -> float | None:
    """Seconds to wait before the next try after `failed` failures in a row; None: give up."""
    if failed >= TRIES or is_certificate_error(error):
        return None
    if isinstance(error, BadAnswer) and not isinstance(error, TooSlow):  # a slow connection may recover
        return None
    if not isinstance(error, HfHubHTTPError):
        return FIRST_WAIT_S * 2.0 ** (failed - 1)
    if error.response.status_code == 416:
        return 0.0
    if error.response.status_code not in TRANSIENT_STATUS:
        return None
    asked_s = retry_after_s(error.response.headers)
    if asked_s is not None and asked_s > LONGEST_WAIT_S:
        return None
    return FIRST_WAIT_S * 2.0 ** (failed - 1) if asked_s is None else asked_s


def is_certificate_error(error: BaseException) -> bool:
    """Whether TLS failed because the server's certificate is not trusted; trying again cannot help."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def _first_line_of_transfer_error(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
