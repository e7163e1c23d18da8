"""Leases: who works on what, and until when. They only save duplicate work; results are right without any.

A lease is alive while its object is younger than its time to live, by the store's own clock: clocks of machines differ.
"""

from typing import Annotated, Final

from pydantic import Field

from quantyard.files.unique_names import ProcessMark, new_process_mark
from quantyard.formats.strict_json import load_json
from quantyard.protocol.base import Frozen
from quantyard.shared_store.objects import ObjectStore

LEASES: Final = "leases/"
_MAX_BYTES: Final = 64 * 1024
_Word = Annotated[str, Field(max_length=200)]


class LeaseOwner(Frozen):
    """Who holds a lease: a process of a host, and the job of a scheduler that it is, if any."""

    host: _Word
    pid: Annotated[int, Field(ge=0)]
    random: _Word  # tells it from others of this process
    job: _Word = ""

    @property
    def mark(self) -> str:
        """Its name, which no other owner has."""
        return str(ProcessMark(self.host, self.pid, self.random))

    def __str__(self) -> str:
        """For messages: process 1234 on node-7, job 99."""
        return f"process {self.pid} on {self.host}" + (f", job {self.job}" if self.job else "")


class Lease(Frozen):
    """One lease."""

    owner: LeaseOwner
    time_to_live_s: Annotated[float, Field(gt=0)]


def new_lease_owner(job: str = "") -> LeaseOwner:
    """An owner: this process."""
    mark = new_process_mark()
    return LeaseOwner(host=mark.host, pid=mark.pid, random=mark.random, job=job)


def take_lease(store: ObjectStore, key: str, owner: LeaseOwner, time_to_live_s: float) -> Lease | None:
    """Take the lease of a key.

    Returns:
        The lease of another owner that is alive; None if it is this one's now. Two may take an expired lease at once.
    """
    lease = Lease(owner=owner, time_to_live_s=time_to_live_s)
    text = lease.model_dump_json().encode()
    if store.put_if_absent(LEASES + key, text):
        return None
    there = live_lease(store, LEASES + key)
    if there is not None and there.owner != owner:
        return there
    store.put(LEASES + key, text)
    return None


def renew_lease(store: ObjectStore, key: str, lease: Lease) -> None:
    """Have the lease live on; well before it expires."""
    store.put(LEASES + key, lease.model_dump_json().encode())


def end_lease(store: ObjectStore, key: str, owner: LeaseOwner) -> None:
    """Give a lease back, if it is still this owner's."""
    there = read_lease(store, LEASES + key)
    if there is not None and there.owner == owner:
        store.remove(LEASES + key)


def live_lease(store: ObjectStore, name: str) -> Lease | None:
    """The lease in this object; None if it is missing, damaged or expired."""
    lease, written = read_lease(store, name), store.modified_at(name)
    if lease is None or written is None:
        return None
    return lease if (store.now() - written).total_seconds() < lease.time_to_live_s else None


def read_lease(store: ObjectStore, name: str) -> Lease | None:
    """The lease in this object, alive or not; None if it is missing or damaged."""
    try:
        text = store.read_bytes(name)
        load_json(text, _MAX_BYTES)
        return Lease.model_validate_json(text)
    except (FileNotFoundError, ValueError):
        return None
