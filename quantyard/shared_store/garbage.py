"""Removes from a shared store what nobody needs: killed attempts, old second results, contents that no result names.

Safe beside running work, and where clocks differ by hours: an attempt stays whose lease is alive by the store's clock
or is renewed while this looks; a second result with other bytes stays until it is older than the limit; a content stays
if any result, differing result or spec holds its digest, if it was put within the limit, or since the oldest live
attempt began. The limit of contents is above the time after which one that is put again counts as new (contents.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from quantyard.shared_store.attempts import BEGUN, LEASE, attempt_prefixes, remove_attempt
from quantyard.shared_store.commits import DIFFERING, RESULTS
from quantyard.shared_store.contents import CONTENTS, KEPT
from quantyard.shared_store.leases import LEASES, live_lease, unrenewed_leases
from quantyard.shared_store.objects import ObjectStatus, ObjectStore
from quantyard.shared_store.store_probe import PROBES

SPECS: Final = "specs/"
CHECKS: Final = "checks/"  # what nodes say of themselves
CONTENTS_OLDER_THAN: Final = timedelta(days=1)
_NAMING: Final = (RESULTS, DIFFERING, SPECS)  # objects that name contents
_DIGEST_CHARACTERS: Final = 64
_DIGEST: Final = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True)
class Garbage:
    """What was removed, or would be: the names of attempts, contents and others, and the contents' size."""

    attempts: tuple[str, ...]
    differing: tuple[str, ...]  # second results with other bytes
    contents: tuple[str, ...]
    contents_bytes: int
    others: int  # expired leases, unfinished uploads and the like


def collect_store_garbage(
    store: ObjectStore, older_than: timedelta, contents_older_than: timedelta = CONTENTS_OLDER_THAN,
    dry_run: bool = False,
) -> Garbage:
    """Remove what was left for longer than `older_than` and nobody needs; contents, for the longer of the two."""
    now = store.now()
    before = now - older_than
    live, abandoned = _attempts_of_store(store, before)
    differing = [*_old_objects(store, DIFFERING, before)]
    contents = _unnamed_contents(store, min([before, now - contents_older_than, *live]), differing)
    others = [*_spent_specs(store, before), *_expired_leases(store, before)]
    others += [name for prefix in (KEPT, PROBES, CHECKS) for name in _old_objects(store, prefix, before)]
    if not dry_run:
        for prefix in abandoned:
            remove_attempt(store, prefix)
        for name in (*differing, *others):
            store.remove(name)
        contents = [each for each in contents if _is_still_old(store, each, before)]
    found = Garbage(
        tuple(abandoned), tuple(differing), tuple(each.name for each in contents),
        sum(each.size_bytes for each in contents), len(others),
    )  # fmt: skip
    return found if dry_run else _with_temporary_removed(store, found, before)


def _with_temporary_removed(store: ObjectStore, found: Garbage, before: datetime) -> Garbage:
    return replace(found, others=found.others + store.clear_temporary(before))


def _attempts_of_store(store: ObjectStore, before: datetime) -> tuple[list[datetime], list[str]]:
    """When the live attempts began, and the prefixes of those that are not, to which nothing was written lately."""
    live, abandoned = list[datetime](), list[str]()
    for prefix in attempt_prefixes(store):
        if live_lease(store, prefix + LEASE) is not None:
            live += [store.modified_at(prefix + BEGUN) or before]
        elif all(status.modified_at <= before for status in store.statuses(prefix)):
            abandoned.append(prefix)
    dead = unrenewed_leases(store, [prefix + LEASE for prefix in abandoned])
    live += [store.modified_at(prefix + BEGUN) or before for prefix in abandoned if prefix + LEASE not in dead]
    return live, [prefix for prefix in abandoned if prefix + LEASE in dead]


def _unnamed_contents(store: ObjectStore, before: datetime, removed: Collection[str]) -> list[ObjectStatus]:
    """The old contents that no object names, but for the ones that are removed too."""
    old = [status for status in store.statuses(CONTENTS) if status.modified_at < before]
    kept = {status.name.removeprefix(KEPT) for status in store.statuses(KEPT) if status.modified_at >= before}
    named = _named_digests(store, removed) if old else set[str]()
    return [status for status in old if status.name.removeprefix(CONTENTS) not in named | kept]


def _named_digests(store: ObjectStore, removed: Collection[str]) -> set[str]:
    found, left_out = set[str](), set(removed)
    for prefix in _NAMING:
        for name in store.names(prefix):
            if name in left_out:
                continue
            try:
                text = store.read_bytes(name)
            except FileNotFoundError:  # removed meanwhile
                continue
            found |= {match.decode() for match in _DIGEST.findall(text)}
    return found


def _is_still_old(store: ObjectStore, content: ObjectStatus, before: datetime) -> bool:
    """Whether nobody has put it again since; then it is removed."""
    again = store.modified_at(KEPT + content.name.removeprefix(CONTENTS))
    if again is not None and again >= before:
        return False
    store.remove(content.name)
    return True


def _expired_leases(store: ObjectStore, before: datetime) -> list[str]:
    expired = [name for name in _old_objects(store, LEASES, before) if live_lease(store, name) is None]
    return sorted(unrenewed_leases(store, expired))


def _spent_specs(store: ObjectStore, before: datetime) -> list[str]:
    """Old specs, named after their keys, of stages that have a result."""
    old = {name: name.removeprefix(SPECS)[:_DIGEST_CHARACTERS] for name in _old_objects(store, SPECS, before)}
    return [name for name, key in old.items() if store.status(RESULTS + key) is not None]


def _old_objects(store: ObjectStore, prefix: str, before: datetime) -> Iterator[str]:
    return iter([status.name for status in store.statuses(prefix) if status.modified_at <= before])
