"""Contents by digest: `cas/<sha256>`. What lies under a digest has it, for it is complete before it has the name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from quantyard.errors import StoreDamaged
from quantyard.files.atomic import sync_file
from quantyard.files.unique_names import temporary_beside
from quantyard.formatting.numbers import format_count, format_exact_bytes
from quantyard.protocol.base import FileEntry
from quantyard.protocol.runner import file_sha256
from quantyard.shared_store.objects import ObjectStore

CONTENTS: Final = "cas/"
KEPT: Final = "kept/"  # kept/<sha256>: when an old content was last put again, since `gc` goes by age
_RENEWED_AFTER: Final = timedelta(hours=12)  # `gc` keeps what is younger than days
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def content_name(sha256: str) -> str:
    """The name of a content.

    Raises:
        ValueError: it is not a SHA-256 in hex.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256[:80]!r} is not a SHA-256")
    return CONTENTS + sha256


def put_content(store: ObjectStore, path: Path, sha256: str) -> None:
    """Have a file in the store, which the caller knows to have this digest. One that is there is not sent again.

    Raises:
        StoreDamaged: what lies under its digest has another size.
    """
    name, found = content_name(sha256), store.status(content_name(sha256))
    if found is None and store.put_if_absent(name, path):
        return
    found = found or store.status(name)
    if found is not None and found.size_bytes != path.stat().st_size:
        why = f"it has {format_exact_bytes(found.size_bytes)}, and {format_count(path.stat().st_size)} belong there"
        raise _damaged_content(store, sha256, why)
    if found is not None and store.now() - found.modified_at > _RENEWED_AFTER:
        store.put(KEPT + sha256, b"")


def get_content(store: ObjectStore, sha256: str, target: Path) -> None:
    """Copy a content into a new file at `target`, checked, and at once.

    Raises:
        FileNotFoundError: the store has none of this digest.
        StoreDamaged: what lies under the digest has another one.
    """
    temporary = temporary_beside(target)
    try:
        store.read_to_file(content_name(sha256), temporary)
        if (found := file_sha256(temporary)) != sha256:
            raise _damaged_content(store, sha256, f"it has the SHA-256 {found}")
        sync_file(temporary)
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def missing_contents(store: ObjectStore, files: Iterable[FileEntry]) -> list[str]:
    """The digests of those files that the store lacks, or has in another size."""
    wanted = {entry.sha256 or "": entry.size_bytes for entry in files}
    found = {sha256: store.status(content_name(sha256)) for sha256 in wanted}
    return [sha256 for sha256, status in found.items() if status is None or status.size_bytes != wanted[sha256]]


def _damaged_content(store: ObjectStore, sha256: str, why: str) -> StoreDamaged:
    name = content_name(sha256)
    hint = f"Remove {name} from the store, and look at its disk. What needs it then makes it again."
    return StoreDamaged(f"{store.url}/{name} is damaged: {why}.", hint)
