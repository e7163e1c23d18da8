"""What the Hub repo holds before anything is sent to it: who may read it, its files, and the manifest among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from quantyard.errors import HubUnreachable
from quantyard.hub import client as hub
from quantyard.hub.client import HubAccess, with_hub_retries
from quantyard.hub.files import Closed
from quantyard.hub.foreign_manifest import parse_hub_manifest
from quantyard.publish.files import PublishedFile
from quantyard.publish.hub import errors
from quantyard.publish.hub import upload as hub_upload
from quantyard.publish.hub.target import (
    HubRelease,
    HubTarget,
    Record,
    download_published_file,
    look_at_hub_target,
    release_file_state,
)
from quantyard.store.manifest import MAX_BYTES, Manifest

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

MANIFEST = "manifest.json"
Known = Literal["ours", "earlier", "theirs"]


@dataclass(frozen=True)
class HubThere:
    """What is there.

    Attributes:
        exists: None: the Hub could not be asked.
        files: everything on the branch; on main if the branch does not exist yet.
        manifest: that of the release there; None if there is none of ours.
        has_branch: False: the branch does not exist yet, so nothing on it can be lost.
    """

    exists: bool | None = None
    private: bool = False
    gated: str = ""
    files: Record = field(default_factory=dict)
    manifest: Manifest | None = None
    has_branch: bool = True

    def closed(self, target: HubTarget) -> Closed:
        """Why the repo will be read with a token only."""
        is_private = self.private if self.exists else target.private
        return "private" if is_private else "gated" if self.gated or target.gated else ""

    def is_public(self, target: HubTarget) -> bool:
        """Whether everybody will see the card; of a gated repo too."""
        return not (self.private if self.exists else target.private)

    def known(self, path: str) -> Known:
        """Whose the content of a file there is: as we published it, perhaps so by an earlier version, or another's."""
        found = self.files[path]
        if self.manifest is None:
            return "theirs"
        if found.lfs and found.lfs.sha256 in _sha256_of_recorded_models(self.manifest):
            return "ours"
        if path.lower().endswith(".gguf"):
            return "theirs"
        if not self.manifest.published:
            return "earlier"
        # The Hub may keep a picture with LFS, under another hash than git's.
        same = found.lfs or self.manifest.published.get(path) == found.blob_id
        return "ours" if path in self.manifest.published and same else "theirs"

    @property
    def published(self) -> dict[str, str]:
        """The record of the small files that we published there and that nobody changed since."""
        known = self.manifest.published if self.manifest else {}
        return {path: blob for path, blob in known.items() if path in self.files and self.known(path) == "ours"}

    def replaced(self, file: PublishedFile) -> bool:
        """Whether publishing replaces a file there by another."""
        return release_file_state(self.files.get(file.path), file) == "changed"


def look_there(access: HubAccess, target: HubTarget | None) -> HubThere:
    """Read what the target holds; unknown where the Hub does not answer, or to a visitor.

    Raises:
        HubError: the Hub said no.
    """
    if target is None:
        return HubThere()
    release = HubRelease(hub.hub_api(access), target, ())
    try:
        with errors.explain_publish_errors(release.api, target.repo_id), hub_upload.silent_hub_client():
            seen = look_at_hub_target(release)
            if seen is None:  # to a visitor, a private repo looks like a missing one
                return HubThere(exists=False if access.token else None)
            files = _published_hub_files(release, seen.head)
            return HubThere(
                exists=True, private=seen.private, gated=seen.gated, files=files,
                manifest=_published_hub_manifest(release, seen.head, files), has_branch=seen.has_branch,
            )
    except HubUnreachable:
        return HubThere()


def _published_hub_files(release: HubRelease, commit: str) -> Mapping[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    ask = release.api.list_repo_tree
    found = with_hub_retries(lambda: list(ask(release.repo_id, recursive=True, revision=commit)))
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def _published_hub_manifest(release: HubRelease, commit: str, files: Record) -> Manifest | None:
    """The manifest there; None if it is not one of ours."""
    found = files.get(MANIFEST)
    if found is None or found.size > MAX_BYTES:
        return None
    try:
        return parse_hub_manifest(download_published_file(release, commit, found), MANIFEST)
    except ValueError:
        return None


def _sha256_of_recorded_models(manifest: Manifest) -> set[str | None]:
    """The SHA-256 of every model file that a manifest records."""
    of_quants = {entry.sha256 for record in manifest.quants.values() for entry in record.files}
    others = {entry.sha256 for entry in (manifest.projector.files if manifest.projector else ())}
    return of_quants | others | {record.sha256 for record in manifest.imatrices.values()}
