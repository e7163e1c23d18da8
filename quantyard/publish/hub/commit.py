"""Publishing to the Hub: every file in one commit, on a branch or as a pull request, and read back afterwards.

Nothing is ever deleted there. Files that the repo has already are not sent; a failed upload leaves its files unchanged.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import quote

from quantyard.errors import BadRequest, HubUnreachable
from quantyard.hub import client as hub
from quantyard.hub.client import HubAccess, with_hub_retries
from quantyard.publish.files import PublishedFile
from quantyard.publish.hub import errors
from quantyard.publish.hub import upload as hub_upload
from quantyard.publish.hub.target import (
    MAIN,
    FileChange,
    HubRelease,
    HubTarget,
    Record,
    SeenHubRepo,
    all_hub_target_changes,
    check_hub_target,
    download_published_file,
    hub_target_info,
    hub_target_record,
    look_at_hub_target,
    publish_target_changes,
    published_file_identity,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

__all__ = [
    "FileChange",
    "HubPublication",
    "HubTarget",
    "check_hub_target",
    "preview_hub_publication",
    "publish_to_hub",
]

_OFFERS_READ = 20  # of our open pull requests that are compared


@dataclass(frozen=True)
class HubPublication:
    """What was published: `commit` is the one that holds the files, `pull_request` the address of one or ""."""

    url: str
    commit: str
    pull_request: str
    created: bool
    changes: tuple[FileChange, ...]


def preview_hub_publication(
    access: HubAccess, target: HubTarget, files: Sequence[PublishedFile]
) -> tuple[bool | None, tuple[FileChange, ...]]:
    """What publishing would do; nothing is written.

    Returns:
        Whether the repo exists (None: unknown, without a token or a network), and what becomes of each
        file. A repo that the token may not see counts as one that does not exist.

    Raises:
        BadRequest: the target is not valid.
        HubError: the Hub said no.
    """
    check_hub_target(target)
    release = HubRelease(hub.hub_api(access), target, tuple(files))
    try:
        with errors.explain_publish_errors(release.api, target.repo_id), hub_upload.silent_hub_client():
            seen = look_at_hub_target(release)
            changes = (
                publish_target_changes(release, hub_target_record(release, seen.head))
                if seen
                else all_hub_target_changes(release, "new")
            )
    except HubUnreachable:
        return None, all_hub_target_changes(release, "unknown")
    if seen is None and not access.token:  # to a visitor, a private repo looks like a missing one
        return None, all_hub_target_changes(release, "unknown")
    return seen is not None, changes


def publish_to_hub(
    access: HubAccess, target: HubTarget, files: Sequence[PublishedFile], message: str,
    on_progress: Callable[[str, int, int], None],
) -> HubPublication:
    """Publish these files in one commit, and read back what arrived.

    Args:
        message: the commit's, or the title of the pull request.
        on_progress: told the path, the bytes sent and the size in bytes; goes back when a piece is sent again.

    Raises:
        NeedsToken, FileChanged, BadRequest: no request was sent to the Hub.
        MayNotWrite, NotGated, RepoChanged, UploadRefused, UploadDiffers: see errors.py here.
        RepoRenamed, HubUnreachable, HubError: see hub/errors.py.
    """
    check_hub_target(target)
    _check_files_to_publish(files)
    api = hub.hub_api(access)
    if not access.token:
        raise errors.publish_needs_token(api.endpoint)
    with errors.explain_publish_errors(api, target.repo_id), ExitStack() as stack:
        operations = {file.path: hub_upload.open_hub_upload(file, on_progress, stack) for file in files}
        stack.enter_context(hub_upload.silent_hub_client())
        release = HubRelease(api, target, tuple(files), _hub_token_owner(api))
        hub_upload.check_card_on_hub(api, files)
        return _publish_hub_release(release, operations, message)


def _publish_hub_release(
    release: HubRelease, operations: Mapping[str, CommitOperationAdd], message: str
) -> HubPublication:
    seen = look_at_hub_target(release)
    created = seen is None
    with errors.publish_left_behind() as left:
        seen = _gate_hub_repo(release, seen or _create_hub_repo(release, left))
        record = hub_target_record(release, seen.head)
        changes = publish_target_changes(release, record)
        wanted = [operations[change.path] for change in changes if change.state != "unchanged"]
        commit, offer = (_offered_pull_request(release) or ("", "")) if wanted else (seen.head, "")
        if not commit:
            commit, offer = _send_hub_release(release, seen, record, wanted, message, left)
    _read_back_hub_commit(release, commit)
    branch = f"/tree/{quote(release.target.branch, safe='')}" if release.target.branch else ""
    return HubPublication(f"{release.api.endpoint}/{release.repo_id}{branch}", commit, offer, created, changes)


def _send_hub_release(
    release: HubRelease, seen: SeenHubRepo, record: Record, operations: Sequence[CommitOperationAdd], message: str,
    left: list[str],
) -> tuple[str, str]:  # fmt: skip
    """Upload, and only then touch the repo; the commit, and the address of the pull request or ""."""
    target, revision = release.target, release.target.branch if seen.has_branch else ""
    hub_upload.upload_to_hub(release.api, release.repo_id, revision or MAIN, operations, create_pr=target.pull_request)
    if not seen.has_branch:
        make = release.api.create_branch
        with_hub_retries(lambda: make(release.repo_id, branch=target.branch, revision=seen.head, exist_ok=True))
        left.append(f"The branch {target.branch} was created, and still equals {MAIN}.")
    return _commit_hub_release(release, replace(seen, has_branch=True), record, operations, message)


def _commit_hub_release(
    release: HubRelease, seen: SeenHubRepo, record: Record, operations: Sequence[CommitOperationAdd], message: str
) -> tuple[str, str]:
    """One commit on top of the state seen. If the repo changed, or the answer was lost, look again before a retry."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    moved = False
    for failed in range(1, hub.TRIES + 1):
        try:
            made = release.api.create_commit(
                release.repo_id, operations, commit_message=message, revision=release.target.branch or MAIN,
                create_pr=release.target.pull_request, parent_commit=seen.head, num_threads=1,
            )  # fmt: skip
        except (HfHubHTTPError, httpx2.TransportError) as error:
            has_moved = isinstance(error, HfHubHTTPError) and error.response.status_code in errors.MOVED_STATUS
            pause_s = 0.0 if has_moved else hub.hub_retry_wait_s(error, failed)
            if pause_s is None or (has_moved and moved):
                raise
            moved = moved or has_moved
            time.sleep(pause_s)
            seen, arrived = _look_at_hub_again(release, record)
            if arrived:
                return arrived
        else:
            return made.oid, made.pr_url or ""
    raise AssertionError("the last try returns or raises")


def _look_at_hub_again(release: HubRelease, record: Record) -> tuple[SeenHubRepo, tuple[str, str] | None]:
    """The state to commit on now; and our commit, if it arrived although the Hub's answer was lost.

    Raises:
        RepoChanged: somebody else's commit touches our files.
    """
    seen = look_at_hub_target(release)
    if seen is None:
        raise errors.published_repo_changed(release.repo_id, ["the repo itself is gone"])
    now = hub_target_record(release, seen.head)
    if release.target.pull_request:
        return seen, _offered_pull_request(release)
    if all(change.state == "unchanged" for change in publish_target_changes(release, now)):
        return seen, (seen.head, "")
    if touched := [
        f.path
        for f in release.files
        if published_file_identity(now.get(f.path)) != published_file_identity(record.get(f.path))
    ]:
        raise errors.published_repo_changed(release.repo_id, touched)
    return seen, None


def _offered_pull_request(release: HubRelease) -> tuple[str, str] | None:
    """Commit and address of our open pull request with exactly these files."""
    if not release.target.pull_request:
        return None
    ask = release.api.get_repo_discussions
    found = with_hub_retries(
        lambda: list(
            islice(
                ask(release.repo_id, author=release.me, discussion_type="pull_request", discussion_status="open"),
                _OFFERS_READ,
            )
        )
    )
    for offer in found:
        info = with_hub_retries(lambda number=offer.num: hub_target_info(release, f"refs/pr/{number}"))  # type: ignore[misc]
        commit = hub.hub_commit(info, release.api.endpoint)
        changes = publish_target_changes(release, hub_target_record(release, commit))
        if all(change.state == "unchanged" for change in changes):
            return commit, offer.url
    return None


def _hub_token_owner(api: HfApi) -> str:
    """Whose token it is."""
    found = with_hub_retries(api.whoami)
    token = found.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise errors.publish_read_only_token(str(found.get("name")), api.endpoint)
    return str(found.get("name"))


def _check_files_to_publish(files: Sequence[PublishedFile]) -> None:
    paths = [file.path for file in files]
    if not paths or len(set(paths)) != len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        what = f"Two files are called {', '.join(twice)}" if twice else "There is nothing to publish"
        raise BadRequest(f"{what}.", "Build a model first: make build MODEL=… QUANT=…")


def _create_hub_repo(release: HubRelease, left: list[str]) -> SeenHubRepo:
    target = release.target
    with_hub_retries(lambda: release.api.create_repo(target.repo_id, private=target.private, exist_ok=True))
    seen = look_at_hub_target(release)
    if seen is None:
        raise errors.publish_name_taken(target.repo_id)
    who = "private" if target.private else "public"
    left.append(f"The repo {target.repo_id} was created, and stays, empty and {who}.")
    return seen


def _gate_hub_repo(release: HubRelease, seen: SeenHubRepo) -> SeenHubRepo:
    """Gate the repo if required, before the files are there; a stricter gate stays."""
    from huggingface_hub.errors import HfHubHTTPError

    wanted, endpoint = release.target.gated, release.api.endpoint
    if not wanted or seen.gated in (wanted, "manual"):
        return seen
    try:
        with_hub_retries(lambda: release.api.update_repo_settings(release.repo_id, gated=wanted))
    except HfHubHTTPError as error:
        reason = errors.plain_publish_text(error.server_message or "no reason given")
        words = f" (answer {error.response.status_code}: {reason})"
        raise errors.publish_not_gated(release.repo_id, wanted, words, endpoint) from error
    now = look_at_hub_target(release)
    if now is None or now.gated != wanted:
        raise errors.publish_not_gated(release.repo_id, wanted, ", though the Hub reported success", endpoint)
    return now


def _read_back_hub_commit(release: HubRelease, commit: str) -> None:
    """Compare what the Hub has with what was sent: the hashes it records for LFS files, and the bytes of all others."""
    record = hub_target_record(release, commit)
    for file in release.files:
        found = record.get(file.path)
        if found is None:
            size, sha256 = 0, "nothing"
        elif found.lfs:
            size, sha256 = found.lfs.size, found.lfs.sha256
        elif found.size != file.size_bytes:  # the size differs, so there is no need to download it
            size, sha256 = found.size, "others"
        else:
            size, sha256 = found.size, hashlib.sha256(download_published_file(release, commit, found)).hexdigest()
        if (size, sha256) != (file.size_bytes, file.sha256):
            what = f"{size} bytes and {sha256[:12]}, not {file.size_bytes} and {file.sha256[:12]}"
            raise errors.published_file_differs(release.repo_id, commit, file.path, what, release.api.endpoint)
