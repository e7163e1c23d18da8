"""Attempts at a key, each with a prefix of its own: `attempts/<key>/<host>-<pid>-<random>/`.

Nothing that an attempt leaves there counts as a result. It is removed when the attempt ends, and by `gc` if it was
killed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantyard.shared_store.leases import Lease, LeaseOwner, live_lease
from quantyard.shared_store.objects import ObjectStore

ATTEMPTS: Final = "attempts/"
BEGUN: Final = "begun"  # written once: its time is when the attempt began
LEASE: Final = "lease"
PROGRESS: Final = "progress"  # how far it is


@dataclass(frozen=True)
class Attempt:
    """One attempt of this process at a key."""

    store: ObjectStore
    key: str
    lease: Lease

    @property
    def name(self) -> str:
        """Its name, for the record that it commits."""
        return self.lease.owner.mark

    @property
    def prefix(self) -> str:
        """Where its objects are; ends with "/"."""
        return f"{ATTEMPTS}{self.key}/{self.name}/"

    def heartbeat(self) -> None:
        """Say that it is alive; several times within the lease's time to live."""
        self.store.put(self.prefix + LEASE, self.lease.model_dump_json().encode())

    def put(self, name: str, content: bytes | Path) -> None:
        """Keep a file of the attempt, such as its log, for those who watch it."""
        self.store.put(self.prefix + name, content)

    def end(self) -> None:
        """Remove what it left."""
        remove_attempt(self.store, self.prefix)


def begin_attempt(store: ObjectStore, key: str, owner: LeaseOwner, time_to_live_s: float) -> Attempt:
    """Begin an attempt: the store shows it as alive for this time, and after each heartbeat."""
    attempt = Attempt(store, key, Lease(owner=owner, time_to_live_s=time_to_live_s))
    attempt.heartbeat()
    store.put(attempt.prefix + BEGUN, attempt.lease.model_dump_json().encode())
    return attempt


def live_attempts(store: ObjectStore, key: str) -> dict[str, Lease]:
    """The attempts at a key that are alive, by their prefix."""
    found = dict[str, Lease]()
    for prefix in attempt_prefixes(store, key):
        if (lease := live_lease(store, prefix + LEASE)) is not None:
            found[prefix] = lease
    return found


def attempt_prefixes(store: ObjectStore, key: str = "") -> list[str]:
    """The prefixes of all attempts, alive or not: at one key, or at all."""
    names = store.names(f"{ATTEMPTS}{key}/" if key else ATTEMPTS)
    return sorted({"/".join(name.split("/")[:3]) + "/" for name in names if name.count("/") >= 3})


def remove_attempt(store: ObjectStore, prefix: str) -> None:
    """Remove all objects of an attempt, the lease last."""
    for name in sorted(store.names(prefix), key=lambda name: name == prefix + LEASE):
        store.remove(name)
