"""Examines a shared store, and removes from it what nobody needs."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from quantyard.batch.batch_engine import batch_store_url
from quantyard.requests import BuildRequest
from quantyard.shared_store.garbage import CONTENTS_OLDER_THAN, Garbage, collect_store_garbage
from quantyard.shared_store.open_store import open_object_store
from quantyard.shared_store.store_probe import probe_store_apart
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


def workflow_store_garbage(request: BuildRequest) -> tuple[str, Garbage]:
    """Remove old attempts and unnamed contents from the store; returns its name, and what was removed or would be."""
    assert request.garbage is not None, "the command has these settings"
    url, older = batch_store_url(request.cluster, request.artifacts), timedelta(days=request.garbage.keep_days)
    store = open_object_store(url)
    return store.url, collect_store_garbage(store, older, max(older, CONTENTS_OLDER_THAN), request.garbage.dry_run)
