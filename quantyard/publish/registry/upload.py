"""Uploads one blob to a registry in chunks, hashed while it is sent. After a broken connection it resumes from what the
registry has kept: some keep every byte, some whole chunks; Docker's own forgets the blob, so it starts again.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from quantyard.publish.files import PublishedFile
from quantyard.publish.registry.client import Registry, TransientRegistryAnswer
from quantyard.publish.registry.errors import ArtifactChanged, registry_artifact_changed, registry_kept_too_much

if TYPE_CHECKING:
    import httpx2

CHUNK_BYTES = 64 * 1024 * 1024  # proxies limit a request, and a broken connection costs at most one chunk
_BLOCK_BYTES = 1024 * 1024
_RANGE = re.compile(r"^(?:bytes=)?0-([0-9]{1,18})$")


class RegistryUpload:
    """Sends one file that the registry does not have.

    Args:
        on_progress: called with the bytes of this file sent so far.
    """

    def __init__(self, registry: Registry, file: PublishedFile, on_progress: Callable[[int], None]) -> None:
        self._registry = registry
        self._file = file
        self._on_progress = on_progress
        self._location = ""  # "": not begun
        self._chunk_bytes = CHUNK_BYTES
        self._arrived = 0  # bytes that the registry has confirmed
        self._hash = hashlib.sha256()
        self._hashed = 0  # bytes; a chunk that is sent twice is hashed once

    def run(self) -> None:
        """Send it. The connection may break; after `TRIES` breaks in a row without progress it fails.

        Raises:
            ArtifactChanged: it does not match its hash; the upload was not completed.
            OciError: the registry refuses it, or does not answer.
        """
        import httpx2

        failed, furthest, done = 0, 0, False
        while not done:
            try:
                self._send_what_is_left()
                done = True
            except (httpx2.TransportError, TransientRegistryAnswer) as error:
                failed = 1 if self._arrived > furthest else failed + 1
                furthest = max(furthest, self._arrived)
                self._registry.backoff(failed, error)

    def _send_what_is_left(self) -> None:
        self._go_back_to_what_arrived()
        while self._arrived < self._file.size_bytes:
            self._send_chunk()
        self._check_hash()
        url = str(_blob_url_with_digest(self._location, self._file.sha256))
        response = self._registry.send("PUT", url, headers={"Content-Length": "0"})
        if response.status_code == 404 and self._registry.blob_size(f"sha256:{self._file.sha256}") is not None:
            return  # only the answer to the last try was lost
        if response.status_code == 400 and b"DIGEST" in response.content and not self._is_still_itself():
            raise registry_artifact_changed(self._file.path, "the registry computes another hash of what it was sent")
        self._registry.expect(response, 201, 204)

    def _go_back_to_what_arrived(self) -> None:
        """Ask the registry how much it has; start again if it cannot tell."""
        from quantyard.network.bounded_http import http_byte_count

        status = self._registry.send("GET", self._location) if self._location else None
        found = _RANGE.match(status.headers.get("Range", "")) if status and status.status_code == 204 else None
        if status and found and int(found[1]):  # "0-0" is one byte or none
            self._arrived, self._location = int(found[1]) + 1, self._registry.location(status)
            if self._arrived > self._hashed:
                raise registry_kept_too_much(self._registry.name, self._arrived, self._hashed)
            return
        response = self._registry.start_upload()
        self._chunk_bytes = max(CHUNK_BYTES, http_byte_count(response.headers.get("OCI-Chunk-Min-Length")) or 0)
        self._arrived, self._location = 0, self._registry.location(response)

    def _send_chunk(self) -> None:
        start = self._arrived
        end = min(start + self._chunk_bytes, self._file.size_bytes)
        headers = {
            "Content-Type": "application/octet-stream", "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
        }
        try:
            response = self._registry.send("PATCH", self._location, lambda: self._blocks(start, end), headers)
        except ArtifactChanged:
            self._cancel()
            raise
        self._location = self._registry.location(self._registry.expect(response, 202, 204))
        self._arrived = end

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        with _open_oci_blob(self._file) as content:
            content.seek(start)
            while start < end:
                block = content.read(min(_BLOCK_BYTES, end - start))
                if not block:
                    raise registry_artifact_changed(self._file.path, f"it ends after {start} bytes")
                self._hash.update(block[max(0, self._hashed - start) :])
                start += len(block)
                self._hashed = max(self._hashed, start)
                yield block
                self._on_progress(start)

    def _check_hash(self) -> None:
        found = self._hash.hexdigest()
        if found != self._file.sha256:
            self._cancel()
            raise registry_artifact_changed(
                self._file.path, f"its SHA-256 is {found[:12]}…, not {self._file.sha256[:12]}…"
            )

    def _is_still_itself(self) -> bool:
        """Check the file on disk against its hash: a part sent twice was hashed once."""
        found = hashlib.sha256()
        with _open_oci_blob(self._file) as content:
            while block := content.read(_BLOCK_BYTES):
                found.update(block)
        return found.hexdigest() == self._file.sha256

    def _cancel(self) -> None:
        """Cancel the upload; if the request fails, the registry drops it after a while."""
        import httpx2

        with suppress(httpx2.HTTPError):
            self._registry.send("DELETE", self._location)


def _open_oci_blob(file: PublishedFile) -> BinaryIO:
    if isinstance(file.content, Path):
        try:
            return file.content.open("rb")
        except OSError as error:
            raise registry_artifact_changed(file.path, f"it cannot be read ({error.strerror})") from error
    return io.BytesIO(file.content)


def _blob_url_with_digest(location: str, sha256: str) -> httpx2.URL:
    import httpx2

    return httpx2.URL(location).copy_merge_params({"digest": f"sha256:{sha256}"})
