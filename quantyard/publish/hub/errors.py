"""The errors of publishing to the Hub. The Hub's own message is quoted, shortened and with plain characters.

HubError                          exit code 4; its other kinds are in errors.py
├── MayNotWrite                   a token that may only read, or somebody else's repo
├── RepoChanged                   the files we publish were changed by somebody else meanwhile
├── UploadRefused                 too large, no storage left, or a card that the Hub rejects
├── NotGated                      the repo cannot be gated, and the model must not be published without
└── UploadDiffers                 what the Hub has is not what was sent
BadRequest                        exit code 2
├── NeedsToken
└── FileChanged                   a file has changed since it was built and measured
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quantyard.errors import BadRequest, HubError, HubUnreachable, QuantyardError, RepoNotFound, RevisionNotFound
from quantyard.formatting.printable import printable_words
from quantyard.publish.files import PublishedFile

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

MOVED_STATUS = frozenset({409, 412})
AGAIN = "Type the same command again: uploaded files are not sent again."
_LONGEST_WORDS = 300  # characters
_NO_ROOM = re.compile(r"storage (limit|patterns|quota)|quota|out of storage|upgrade your plan", re.IGNORECASE)
# In the Hub's words: try again later. A limit of requests is a "quota" to it too.
_LIMITED = re.compile(r"rate.?limit|too many requests|per (?:hour|minute)|hourly|\bretry\b", re.IGNORECASE)
_UPLOADING = re.compile(r"Error while uploading '(.*)' to the Hub", re.DOTALL)
_LFS_ERROR = re.compile(r"Encountered error for file with OID \w+: `(.*)", re.DOTALL)


class MayNotWrite(HubError):
    """A token that may only read, or somebody else's repo."""

    kind = "may-not-write"


class RepoChanged(HubError):
    """Somebody else has changed the files that are being published."""

    kind = "repo-changed"


class UploadRefused(HubError):
    """The Hub does not accept the upload."""

    kind = "upload-refused"


class NotGated(HubError):
    """The repo cannot be gated."""

    kind = "not-gated"


class UploadDiffers(HubError):
    """What the Hub has is not what was sent."""

    kind = "upload-differs"


class NeedsToken(BadRequest):
    """Publishing needs a token, and HF_TOKEN holds none."""

    kind = "needs-token"


class FileChanged(BadRequest):
    """A file has changed since it was built and measured."""

    kind = "file-changed"


def publish_needs_token(endpoint: str) -> NeedsToken:
    """Neither HF_TOKEN nor a login."""
    hint = f"Make one that may write at {endpoint}/settings/tokens, then type: hf auth login, or set HF_TOKEN."
    return NeedsToken("No token is set, and writing to the Hub needs one.", hint)


def publish_read_only_token(name: str, endpoint: str) -> MayNotWrite:
    """The token of this account may not write anything."""
    message = f"The token of {plain_publish_text(name)} may only read (its role is 'read')."
    return MayNotWrite(message, f"Make one that may write at {endpoint}/settings/tokens, and set HF_TOKEN to it.")


def publish_bad_path(path: str) -> BadRequest:
    """No file of a repo can have this name."""
    return BadRequest(f"A file on the Hub cannot be called {path!r}.", "Rename it, and type the same command again.")


def publish_unreadable_file(file: PublishedFile, error: OSError) -> FileChanged:
    """The file is gone, or may not be read."""
    message = f"{file.path} cannot be read: {error.strerror or type(error).__name__}. Nothing was published."
    return FileChanged(message, "Build it again: make build MODEL=… QUANT=…")


def published_file_changed(file: PublishedFile) -> FileChanged:
    """Its size or hash is another now."""
    known = f"its SHA-256 is no longer {file.sha256[:12]}…"
    message = f"{file.path} is not the file that was built and measured: {known}. Nothing was published."
    return FileChanged(message, "Find out what changed it, then: make build MODEL=… QUANT=…")


def published_repo_changed(repo_id: str, paths: Sequence[str]) -> RepoChanged:
    """Somebody else's commit touches the same files."""
    message = f"Somebody has changed {repo_id} meanwhile: {', '.join(paths)}. Nothing was published."
    return RepoChanged(message, "Look at the repo; to replace those files, type the same command again.")


def publish_not_gated(repo_id: str, gated: str, words: str, endpoint: str) -> NotGated:
    """The source is gated, so the repo with files made of it must be gated too."""
    message = f"{repo_id} cannot be made gated ({gated}), as its source is{words}. Nothing was uploaded."
    return NotGated(message, f"Turn on access requests at {endpoint}/{repo_id}/settings, and type the same again.")


def publish_name_taken(repo_id: str) -> MayNotWrite:
    """The repo exists, and the token may not see it."""
    message = f"{repo_id} exists already, and the token in HF_TOKEN may not see it."
    return MayNotWrite(message, "Give the token access to it, or choose another name: REPO=me/name-GGUF")


def published_file_differs(repo_id: str, commit: str, path: str, what: str, endpoint: str) -> UploadDiffers:
    """The commit is made, and one of its files has the wrong content."""
    message = f"{path} arrived damaged in {repo_id} at {commit[:12]}: {what}."
    return UploadDiffers(message, f"Do not use it. See {endpoint}/{repo_id}/commit/{commit}, and publish again.")


def publish_bad_card(response: httpx2.Response) -> UploadRefused:
    """The Hub's own check of README.md."""
    found = "; ".join(e["message"] for e in response.json().get("errors", [])) or "no reason given"
    return UploadRefused(
        f"The Hub does not accept the card's metadata: {plain_publish_text(found)}.", "Correct it in the manifest."
    )


def publish_asked_to_wait(response: httpx2.Response, asked_s: float, words: str = "") -> HubUnreachable:
    """The Hub limits our requests for a long time; `words`: its own."""
    wanted = f", and to be asked again in {asked_s:.0f} s" if asked_s else ", also after waiting"
    hint = f"Wait until then. {AGAIN}" if asked_s else f"Wait some minutes, or as long as it says. {AGAIN}"
    said = f" {plain_publish_text(words)}" if words else ""
    message = f"{_hub_host(response)} wants fewer requests (answer {response.status_code}){wanted}.{said}"
    return HubUnreachable(message, hint)


@contextmanager
def explain_publish_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turn every error into one of ours, without the token in any message."""
    try:
        yield
    except Exception as error:  # huggingface_hub raises a dozen kinds; every one of them is about the Hub
        ours = explain_publish_error(error, api, repo_id)
        token = api.token if isinstance(api.token, str) else ""
        words = (_without_hub_token(token, text) for text in (ours.message, ours.hint, ours.detail))
        ours.message, ours.hint, ours.detail = words
        ours.args = (ours.message,)
        raise ours from (None if ours is error else error)


@contextmanager
def publish_left_behind() -> Iterator[list[str]]:
    """Add sentences to an error about what was created on the Hub and stays there."""
    left: list[str] = []
    try:
        yield left
    except Exception as error:
        error.add_note(" ".join(left))
        raise


def explain_publish_error(error: Exception, api: HfApi, repo_id: str) -> QuantyardError:
    """The error to raise in place of one that a call of `api` about `repo_id` raised."""
    import httpx2
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, HfHubHTTPError, RevisionNotFoundError

    from quantyard.hub import errors as hub_errors
    from quantyard.network.bounded_http import BadAnswer

    path, cause = _file_uploading_at_error(error)
    if isinstance(cause, QuantyardError):
        ours = cause
    elif isinstance(cause, BadAnswer):
        ours = hub_errors.hub_bad_answer_error(cause)
    elif isinstance(cause, GatedRepoError):
        ours = hub_errors.hub_gated_error(api, repo_id)
    elif isinstance(cause, DisabledRepoError):
        ours = hub_errors.hub_disabled_error(api, repo_id)
    elif isinstance(cause, RevisionNotFoundError):
        ours = RevisionNotFound(f"{repo_id} does not have this branch (answer 404).", "Name another: HUB_BRANCH=name")
    elif isinstance(cause, HfHubHTTPError):
        ours = _refused_hub_upload(cause, api, repo_id, path)
    elif isinstance(cause, ValueError) and (found := _LFS_ERROR.search(str(cause))):
        ours = _hub_storage_refused(plain_publish_text(found[1]), repo_id, api.endpoint)
    elif path and isinstance(cause, httpx2.NetworkError | httpx2.ProtocolError | httpx2.TimeoutException):
        ours = HubUnreachable(f"The connection broke while {path} was sent, again and again.", AGAIN, str(cause))
    else:
        ours = hub_errors.hub_unreachable_error(cause, api.endpoint)
    left = " ".join(getattr(error, "__notes__", []))
    ours.message = f"{ours.message} {left}".strip()
    return ours


def _file_uploading_at_error(error: Exception) -> tuple[str, Exception]:
    """The file that was being sent, if the client says so, and what happened to it."""
    found = _UPLOADING.search(str(error))
    cause = error.__cause__
    return (found[1], cause) if found and isinstance(cause, Exception) else ("", error)


def _refused_hub_upload(error: HfHubHTTPError, api: HfApi, repo_id: str, path: str) -> QuantyardError:
    from quantyard.network.hub_client import hub_asked_to_wait_s

    status, words = error.response.status_code, plain_publish_text(error.server_message or "")
    tokens = f"{api.endpoint}/settings/tokens"
    # Waiting comes first: a limit of requests is a "quota" in the Hub's words too.
    if status == 429:
        return publish_asked_to_wait(error.response, hub_asked_to_wait_s(error.response.headers), words)
    if _hub_host(error.response) != urlsplit(str(api.endpoint)).netloc and status in (400, 401, 403):
        message = f"The Hub's storage refuses {path or 'a file'} (answer {status}): its signed address has run out."
        return HubUnreachable(message, AGAIN)
    if status in (402, 413, 507) or (status < 500 and status != 401 and _NO_ROOM.search(words)):
        return _hub_upload_refused(words, status, repo_id, api.endpoint)
    if status == 401:
        message = "The Hub does not accept the token in HF_TOKEN (answer 401)."
        return HubError(message, f"Make a new one that may write at {tokens}, and set HF_TOKEN to it.")
    if status == 403:
        hint = f"Name a repo of yours, or of an organisation you may write for: REPO=me/name-GGUF. Tokens: {tokens}"
        return MayNotWrite(f"The token in HF_TOKEN may not write to {repo_id} (answer 403). {words}".strip(), hint)
    if status == 404:
        message = f"The Hub finds no {repo_id} for the token in HF_TOKEN (answer 404)."
        return RepoNotFound(message, f"Check the name at {api.endpoint}/{repo_id}, and the token's access to it.")
    if status in MOVED_STATUS:
        message = f"{repo_id} changes faster than we can publish (answer {status}). Nothing was published."
        return RepoChanged(message, AGAIN)
    if status >= 500:
        what = f"while {path} was sent" if path else f"to a request for {repo_id}"
        return HubUnreachable(f"{_hub_host(error.response)} answers {status} {what}, also after waiting.", AGAIN)
    return UploadRefused(f"The Hub refuses this for {repo_id} (answer {status}): {words}", "Change what it refuses.")


def _hub_storage_refused(words: str, repo_id: str, endpoint: str) -> QuantyardError:
    """The Hub's storage does not take one file; the answer has words, and no status."""
    if _LIMITED.search(words):
        return HubUnreachable(f"The Hub takes no more files for {repo_id} for now: {words}", f"Wait. {AGAIN}")
    return _hub_upload_refused(words, 0, repo_id, endpoint)


def _hub_upload_refused(words: str, status: int, repo_id: str, endpoint: str) -> UploadRefused:
    answer = f" (answer {status})" if status else ""
    if _NO_ROOM.search(words) or status in (402, 507):
        hint = f"Make room, or see {endpoint}/settings/billing; PUBLIC=1 and private repos have different limits."
        return UploadRefused(f"The Hub has no room for {repo_id}{answer}: {words}", hint)
    hint = "Split large files with SPLIT_ABOVE, or publish fewer quants at once."
    return UploadRefused(f"The Hub finds the upload to {repo_id} too large{answer}: {words}", hint)


def _hub_host(response: httpx2.Response) -> str:
    return urlsplit(str(response.request.url)).netloc


def plain_publish_text(text: str) -> str:
    """A server's message on one short line, without terminal control characters."""
    line = printable_words(text)
    return line if len(line) <= _LONGEST_WORDS else line[:_LONGEST_WORDS] + " …"


def _without_hub_token(token: str, text: str) -> str:
    return text.replace(token, "(the token)") if token else text
