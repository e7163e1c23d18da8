"""What a shared store must be able to do: whole objects under names, and one promise, "put if absent"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from quantyard.formats.names import parse_relative_path


@dataclass(frozen=True)
class ObjectStatus:
    """One object: its name, its size, and when it was written, by the store's clock."""

    name: str
    size_bytes: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Objects by name ("cas/0123…"). A reader sees an object whole or not at all.

    Every method may raise a QuantyardError: StoreUnreachable, OutOfResources, or BadRequest if access is refused.
    """

    @property
    def url(self) -> str:
        """The store, as `open_object_store` takes it."""

    def put_if_absent(self, name: str, content: bytes | Path) -> bool:
        """Write an object unless one has the name. Of any number of writers, one is told True.

        Returns:
            False if the name is taken. It may be taken by this very content, if an answer of the store was lost.
        """

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, in place of any other of its name."""

    def read_bytes(self, name: str) -> bytes:
        """All bytes of a small object.

        Raises:
            FileNotFoundError: there is none.
        """

    def read_to_file(self, name: str, target: Path) -> None:
        """Copy an object into a new file; what is at `target` after an error is not complete.

        Raises:
            FileNotFoundError: there is none.
        """

    def status(self, name: str) -> ObjectStatus | None:
        """Size and time of an object; None if there is none."""

    def statuses(self, prefix: str) -> Iterator[ObjectStatus]:
        """The objects below a prefix that ends with "/", in no order."""

    def names(self, prefix: str) -> Iterator[str]:
        """Their names."""
        return (status.name for status in self.statuses(prefix))

    def modified_at(self, name: str) -> datetime | None:
        """When an object was written, by the store's clock; None if there is none."""
        found = self.status(name)
        return found.modified_at if found else None

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""

    def now(self) -> datetime:
        """The time by the clock that `modified_at` is of."""

    def clear_temporary(self, before: datetime) -> int:
        """Remove what writers that were killed before this time left unfinished; returns how many."""


def checked_object_name(name: str) -> str:
    """The name, if it can be one of an object.

    Raises:
        ValueError: it is absolute, or has parts such as "..", or hidden ones.
    """
    parse_relative_path(name)
    if any(part.startswith(".") for part in name.split("/")):
        raise ValueError(f"{name!r} has a hidden part")
    return name
