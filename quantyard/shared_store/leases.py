"""Leases: who works on what, and until when. They only save duplicate work; results are right without any.

A lease is alive as long as its owner renews it within its time to live. Some stores (GlusterFS, CephFS) write down the
time of the machine that writes, and clocks of machines differ, so the time of an object alone proves no death: a lease
is dead when it did not change for its time to live while this process looked, or is older than clocks differ.
"""

import time
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import Field

from quantyard.files.unique_names import ProcessMark, new_process_mark
from quantyard.formats.strict_json import load_json
from quantyard.protocol.base import Frozen
from quantyard.shared_store.objects import ObjectStore

LEASES: Final = "leases/"
CLOCKS_DIFFER_BY: Final = timedelta(hours=12)  # at most: a wrong time zone
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


class LeaseWatch:
    """Looks at the lease of one key again and again, and tells whether anybody renews it."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self.store, self.name = store, LEASES + key
        self._seen: tuple[Lease | None, datetime | None] | None = None
        self._since = 0.0
        self._is_old = False

    def living(self) -> Lease | None:
        """The lease, unless it is missing, damaged, old, or was not renewed for its time to live since it was seen."""
        now_there = _state_of_lease(self.store, self.name)
        if now_there != self._seen:
            self._seen, self._since = now_there, time.monotonic()
            self._is_old = _is_older_than_clocks(self.store, now_there[1])
        lease, _ = now_there
        if lease is None or self._is_old or time.monotonic() - self._since >= lease.time_to_live_s:
            return None
        return lease


def take_lease(watch: LeaseWatch, owner: LeaseOwner, time_to_live_s: float) -> Lease | None:
    """Take the lease that is watched.

    Returns:
        The lease of another owner that is alive; None if it is this one's now. Two may take a dead lease at once.
    """
    lease = Lease(owner=owner, time_to_live_s=time_to_live_s)
    text = lease.model_dump_json().encode()
    if watch.store.put_if_absent(watch.name, text):
        return None
    there = watch.living()
    if there is not None and there.owner != owner:
        return there
    watch.store.put(watch.name, text)
    return None


def renew_lease(store: ObjectStore, key: str, lease: Lease) -> None:
    """Have the lease live on; well before it expires."""
    store.put(LEASES + key, lease.model_dump_json().encode())


def end_lease_of_job(store: ObjectStore, key: str, job: str) -> None:
    """Give back the lease of a job that has ended, so that nobody waits until it expires."""
    there = read_lease(store, LEASES + key)
    if there is not None and there.owner.job == job:
        store.remove(LEASES + key)


def end_lease(store: ObjectStore, key: str, owner: LeaseOwner) -> None:
    """Give a lease back, if it is still this owner's."""
    there = read_lease(store, LEASES + key)
    if there is not None and there.owner == owner:
        store.remove(LEASES + key)


def unrenewed_leases(store: ObjectStore, names: Collection[str]) -> set[str]:
    """Those of the leases in these objects that nobody renews while this waits for their time to live. Missing,
    damaged and old ones are among them, and not waited for.
    """
    before = {name: _state_of_lease(store, name) for name in names}
    young = {name: lease for name, (lease, written) in before.items() if not _is_older_than_clocks(store, written)}
    time.sleep(max((lease.time_to_live_s for lease in young.values() if lease), default=0.0))
    return {name for name in names if name not in young or _state_of_lease(store, name) == before[name]}


def _state_of_lease(store: ObjectStore, name: str) -> tuple[Lease | None, datetime | None]:
    return read_lease(store, name), store.modified_at(name)


def _is_older_than_clocks(store: ObjectStore, written: datetime | None) -> bool:
    return written is None or store.now() - written > CLOCKS_DIFFER_BY


def live_lease(store: ObjectStore, name: str) -> Lease | None:
    """The lease in this object; None if it is missing, damaged, or expired by the store's clock."""
    lease, written = _state_of_lease(store, name)
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
