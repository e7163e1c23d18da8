"""The state of the repo to publish to: does it exist, and what does it hold under the names of our files?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantyard.errors import BadRequest, BadSource, RepoRenamed
from quantyard.hub import client as hub
from quantyard.hub.client import with_hub_retries
from quantyard.hub.files import parse_hub_repo_id
from quantyard.publish.files import PublishedFile, git_blob_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoFile

MAIN = "main"
State = Literal["new", "changed", "unchanged", "unknown"]
Record = Mapping[str, "RepoFile"]  # path → what the Hub says of the file


@dataclass(frozen=True)
class HubTarget:
    """Where to publish. `private` counts when the repo is created; `gated` "": unchanged."""

    repo_id: str
    private: bool = True
    gated: Literal["", "auto", "manual"] = ""
    branch: str = ""
    pull_request: bool = False


@dataclass(frozen=True)
class FileChange:
    """What publishing does to one file of the repo."""

    path: str
    size_bytes: int
    state: State


@dataclass(frozen=True)
class SeenHubRepo:
    """The repo when it was read; `head` is the commit to build on."""

    head: str
    gated: str
    has_branch: bool
    private: bool = False


@dataclass(frozen=True)
class HubRelease:
    """What to publish where."""

    api: HfApi
    target: HubTarget
    files: tuple[PublishedFile, ...]
    me: str = ""

    @property
    def repo_id(self) -> str:
        """As in REPO."""
        return self.target.repo_id


def check_hub_target(target: HubTarget) -> None:
    """Check the target without asking the Hub.

    Raises:
        BadRequest: the name of the repo or branch is invalid, or both a branch and a pull request are given.
    """
    hint = "Name it like this: REPO=me/name-GGUF"
    if not target.repo_id:
        raise BadRequest("REPO is not given.", hint)
    try:
        _, revision = parse_hub_repo_id(target.repo_id)
    except BadSource as error:
        raise BadRequest(f"REPO is not the name of a repo: {error.message}", hint) from error
    if revision is not None:
        raise BadRequest(f"REPO={target.repo_id} names a revision.", f"{hint}; name a branch with HUB_BRANCH.")
    if target.branch and target.pull_request:
        raise BadRequest("HUB_BRANCH and HUB_PR are both given.", "A pull request goes to main: leave one of them out.")
    if target.branch:
        _check_hub_branch(target)


def _check_hub_branch(target: HubTarget) -> None:
    try:
        parse_hub_repo_id(f"{target.repo_id}@{target.branch}")
    except BadSource as error:
        raise BadRequest(f"{target.branch!r} is not the name of a branch.", "Type: HUB_BRANCH=name") from error
    if target.branch.startswith("refs/") or re.fullmatch(r"[0-9a-f]{40}", target.branch):
        message = f"HUB_BRANCH={target.branch} is a reference or commit, not the name of a branch."
        raise BadRequest(message, "Type: HUB_BRANCH=name")


def hub_target_info(release: HubRelease, revision: str) -> ModelInfo:
    """What the Hub says of the repo at a branch or commit."""
    return release.api.model_info(release.repo_id, revision=revision, timeout=hub.REQUEST_TIMEOUT_S)


def look_at_hub_target(release: HubRelease) -> SeenHubRepo | None:
    """The repo now; None: it does not exist, or the token may not see it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    from quantyard.hub import errors as hub_errors

    branch = release.target.branch or MAIN
    try:
        try:
            info, has_branch = with_hub_retries(lambda: hub_target_info(release, branch)), True
        except RevisionNotFoundError:
            info, has_branch = with_hub_retries(lambda: hub_target_info(release, MAIN)), False
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    if info.id != release.repo_id:  # a redirect was followed
        raise RepoRenamed(f"{release.repo_id} was renamed to {info.id}.", f"Type: REPO={info.id}")
    if info.disabled:
        raise hub_errors.hub_disabled_error(release.api, release.repo_id)
    commit = hub.hub_commit(info, release.api.endpoint)
    return SeenHubRepo(commit, str(info.gated or ""), has_branch, bool(info.private))


def hub_target_record(release: HubRelease, commit: str, paths: Sequence[str] | None = None) -> Record:
    """What the Hub has under the names of our files."""
    from huggingface_hub.hf_api import RepoFile

    asked = [file.path for file in release.files] if paths is None else list(paths)
    found = with_hub_retries(lambda: release.api.get_paths_info(release.repo_id, asked, revision=commit))
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def all_hub_target_changes(release: HubRelease, state: State) -> tuple[FileChange, ...]:
    """The same for every file."""
    return tuple(FileChange(file.path, file.size_bytes, state) for file in release.files)


def publish_target_changes(release: HubRelease, record: Record) -> tuple[FileChange, ...]:
    """What publishing would do to each file."""
    states = {file.path: release_file_state(record.get(file.path), file) for file in release.files}
    return tuple(FileChange(file.path, file.size_bytes, states[file.path]) for file in release.files)


def release_file_state(found: RepoFile | None, file: PublishedFile) -> State:
    """What publishing does to a file, of which the Hub has this."""
    if found is None:
        return "new"
    if found.lfs:
        same = (found.lfs.size, found.lfs.sha256) == (file.size_bytes, file.sha256)
    else:
        same = found.size == file.size_bytes and found.blob_id == git_blob_name(file.read())
    return "unchanged" if same else "changed"


def published_file_identity(found: RepoFile | None) -> tuple[int, str] | None:
    """Tells whether a file is still the same."""
    return (found.size, found.blob_id) if found else None


def download_published_file(release: HubRelease, commit: str, found: RepoFile) -> bytes:
    """A small file, whole; one byte more shows that it is larger than the Hub says."""
    if not found.size:
        return b""  # an empty range cannot be requested
    url = hub.hub_file_url(release.api, release.repo_id, commit, found.path)
    return with_hub_retries(lambda: hub.read_hub_range(release.api, url, 0, found.size + 1))
