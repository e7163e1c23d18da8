"""Examines a shared store, and removes from it what nobody needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from quantyard.batch.batch_engine import batch_store_url
from quantyard.formatting.numbers import format_bytes
from quantyard.requests import BuildRequest
from quantyard.shared_store.commits import differing_results
from quantyard.shared_store.garbage import CONTENTS_OLDER_THAN, Garbage, collect_store_garbage
from quantyard.shared_store.open_store import open_object_store
from quantyard.shared_store.store_probe import probe_store_apart
from quantyard.store.differing import DifferingOutputs, differing_outputs, remove_differing_outputs
from quantyard.workflows.doctor_finding import DoctorFinding

_REMEDY: Final = (
    "Take a store that keeps `If-None-Match: *` (S3, and most servers of its protocol), named as a bucket: "
    "STORE=s3://bucket/prefix; or a folder on NFS, GlusterFS, CephFS or Lustre."
)


def workflow_store_finding(url: str) -> DoctorFinding:
    """Whether a store is safe for several writers, found by a race of sixteen.

    Raises:
        QuantyardError: it cannot be opened or written.
    """
    found = probe_store_apart(url)
    if found.problems:
        return DoctorFinding(
            "shared store", "missing", f"{url} lets several writers win: {'; '.join(found.problems)}", _REMEDY
        )
    return DoctorFinding("shared store", "ok", f"{url}: of {found.n_writers} writers of one name, one wins")


@dataclass(frozen=True)
class StoreGarbage:
    """What was removed, or would be: from the shared store, if there is one, and second results from artifacts."""

    url: str
    shared: Garbage | None
    kept_aside: Sequence[DifferingOutputs]


def workflow_store_garbage(request: BuildRequest) -> StoreGarbage:
    """Remove old attempts, second results and unnamed contents from the store, and second results from artifacts."""
    assert request.garbage is not None, "the command has these settings"
    older, dry_run = timedelta(days=request.garbage.keep_days), request.garbage.dry_run
    aside = remove_differing_outputs(request.artifacts, datetime.now(UTC) - older, dry_run=dry_run)
    url = batch_store_url(request.cluster, request.artifacts)
    if not _is_store_there(request):
        return StoreGarbage(url, None, aside)
    store = open_object_store(url)
    found = collect_store_garbage(store, older, max(older, CONTENTS_OLDER_THAN), dry_run)
    return StoreGarbage(store.url, found, aside)


def _is_store_there(request: BuildRequest) -> bool:
    """Whether a store is set, or was made below the folder of artifacts; none is made to be searched."""
    return bool(request.cluster.store) or Path(batch_store_url(request.cluster, request.artifacts)).is_dir()


def workflow_differing_findings(request: BuildRequest) -> list[DoctorFinding]:
    """What was kept aside because it has other bytes than the result that counts; [] if nothing was.

    Raises:
        QuantyardError: the store cannot be opened.
    """
    found = list[DoctorFinding]()
    if here := differing_outputs(request.artifacts):
        size = format_bytes(sum(each.size_bytes for each in here))
        found.append(_differing_finding(f"{len(here)} in {request.artifacts} ({size}), the last: {here[-1].path}"))
    if _is_store_there(request):
        store = open_object_store(batch_store_url(request.cluster, request.artifacts))
        if there := differing_results(store):
            found.append(_differing_finding(f"{len(there)} in {store.url}, one of them: {there[0]}"))
    return found


def _differing_finding(value: str) -> DoctorFinding:
    why = "A stage is not deterministic, or a machine or disk is faulty: compare them with what counts."
    return DoctorFinding("results with other bytes", "note", value, f"{why} Then remove old ones: make gc KEEP_DAYS=7")
