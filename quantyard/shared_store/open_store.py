"""Opens a shared store by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest
from quantyard.shared_store.objects import ObjectStore
from quantyard.shared_store.posix_objects import PosixObjects

_HINT: Final = "Name a folder that all machines mount, or a bucket: STORE=s3://bucket/prefix"


def open_object_store(url: str) -> ObjectStore:
    """The store at `file:///folder`, a plain path, or `s3://bucket/prefix`.

    Raises:
        BadRequest: it is none of these, or S3 without its packages.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3":
        from quantyard.shared_store.s3_objects import (
            open_s3_objects,  # imported late: builds without a bucket are quick
        )

        return open_s3_objects(rest)
    if separator and scheme != "file":
        raise BadRequest(f"STORE={scheme}://… is of a kind that is not known.", _HINT)
    if not (path := rest if separator else url).strip():
        raise BadRequest("STORE is empty.", _HINT)
    return PosixObjects(Path(path).expanduser().absolute())
