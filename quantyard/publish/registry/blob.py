"""Downloads a blob of a registry to a file: resumed, followed to the registry's storage, and checked by its digest."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantyard.errors import FileTooLarge
from quantyard.formatting.numbers import format_bytes, format_count, format_exact_bytes
from quantyard.network.bounded_http import MAX_REDIRECTS
from quantyard.publish.registry.client import Registry, TransientRegistryAnswer
from quantyard.publish.registry.errors import RegistryRefused

if TYPE_CHECKING:
    import httpx2

_BLOCK_BYTES: Final = 4 * 1024 * 1024


class _EndedEarly(Exception):
    """The body was shorter than the blob."""


def download_registry_blob(registry: Registry, digest: str, size_bytes: int, path: Path) -> None:
    """Download a blob, `sha256:<hex>`, to `path`; what an earlier try left in `<path>.part` is continued.

    Raises:
        OciError: the registry refuses, cannot be reached, or sends something else.
        FileTooLarge: there is no room for it.
        OSError: it could not be written.
    """
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    if size_bytes - part.stat().st_size > (free := shutil.disk_usage(part.parent).free):
        message = f"{registry.repository} has {format_bytes(size_bytes)}, and {format_bytes(free)} are free."
        raise FileTooLarge(message, "Make room, or leave it out of REPOS.")
    _receive_whole_blob(registry, digest, size_bytes, part)
    with part.open("rb") as stream:
        got = hashlib.file_digest(stream, "sha256").hexdigest()
    if f"sha256:{got}" != digest:
        part.unlink()
        message = f"{registry.name} sends a blob of {registry.repository} that is not {digest}: its SHA-256 is {got}."
        raise RegistryRefused(message, "Try again; it was removed.")
    part.replace(path)


def _receive_whole_blob(registry: Registry, digest: str, size_bytes: int, part: Path) -> None:
    import httpx2

    failed = 0
    while (start := part.stat().st_size) < size_bytes:
        try:
            _receive_blob(registry, registry.blob_url(digest), size_bytes, part)
        except (httpx2.TransportError, TransientRegistryAnswer, _EndedEarly) as error:
            came = part.stat().st_size - start
            failed = 1 if came >= _BLOCK_BYTES else failed + 1  # one that brought something is a new beginning
            registry.backoff(failed, error)
    if start > size_bytes:
        part.unlink()
        stated = format_exact_bytes(size_bytes)
        message = f"{registry.name} sends more of {digest[:19]} than the {stated} that its manifest states."
        raise RegistryRefused(message, "Try again; it was removed.")


def _receive_blob(registry: Registry, url: str, size_bytes: int, part: Path) -> None:
    for _ in range(MAX_REDIRECTS + 1):
        start = part.stat().st_size
        with registry.blob_at(url, start) as response:
            if not response.is_redirect:
                _write_blob(registry, response, size_bytes, part, start)
                return
            url = str(response.request.url.join(response.headers.get("Location", "")))
    raise RegistryRefused(f"{registry.name} leads from address to address and to no blob.", "Try later.")


def _write_blob(registry: Registry, response: httpx2.Response, size_bytes: int, part: Path, start: int) -> None:
    registry.expect(response, 200, 206)
    continues = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    at = start if continues else 0
    with part.open("ab" if continues else "wb") as stream:
        for block in response.iter_bytes():
            at += len(block)
            if at > size_bytes:
                stated = format_exact_bytes(size_bytes)
                message = f"{registry.name} sends more than the {stated} that the manifest states."
                raise RegistryRefused(message, "Try later, or ask its owner.")
            stream.write(block)
    if at < size_bytes:
        raise _EndedEarly(f"the body ended at {format_count(at)} of {format_exact_bytes(size_bytes)}")
