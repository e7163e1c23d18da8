"""What went wrong at the Hub, in our words: from huggingface_hub's exceptions to our error tree."""

from __future__ import annotations

import difflib
import json
import socket

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantyard.errors import HubError, HubUnreachable, QuantyardError, RepoGated, RepoNotFound, RevisionNotFound
from quantyard.hub.files import is_revision
from quantyard.network.bounded_http import BadAnswer
from quantyard.network.hub_client import AskedToWait
from quantyard.network.transfer import EndedEarly, WrongContent
from quantyard.protocol.runner import causes

_REFS_SHOWN = 8


def explain(error: Exception, api: HfApi, repo_id: str, revision: str | None) -> QuantyardError:
    """The error to raise in place of one that a call of `api` about `repo_id` raised."""
    if isinstance(error, RevisionNotFoundError):
        return _revision_not_found(api, repo_id, revision or "main")
    if isinstance(error, GatedRepoError):  # before RepositoryNotFoundError, which it is a kind of
        return gated(api, repo_id)
    if isinstance(error, DisabledRepoError):
        return disabled(api, repo_id)
    if isinstance(error, HfHubHTTPError):
        return _refused(error, api, repo_id)
    return unreachable(error, api.endpoint)


def gated(api: HfApi, repo_id: str) -> RepoGated:
    """The terms of this repo are not accepted, as far as the Hub can tell who asks."""
    page = f"{api.endpoint}/{repo_id}"
    if api.token:
        hint = f"The token in HF_TOKEN has no access yet: accept the terms at {page} with its account, then wait."
    else:
        hint = f"Accept its terms at {page}, then set HF_TOKEN to a token of that account."
    return RepoGated(f"{repo_id} is gated: its owner wants the terms accepted first.", hint)


def disabled(api: HfApi, repo_id: str) -> HubError:
    """The Hub itself has locked this repo."""
    return HubError(f"The Hub has disabled {repo_id}.", f"See {api.endpoint}/{repo_id} for the reason; build another.")


def _revision_not_found(api: HfApi, repo_id: str, revision: str) -> RevisionNotFound:
    names = _refs(api, repo_id)
    near = difflib.get_close_matches(revision, names, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    listed = ", ".join(names[:_REFS_SHOWN]) + (" …" if len(names) > _REFS_SHOWN else "")
    example = f"make build MODEL={repo_id}@{(near or names or ['main'])[0]}"
    hint = f"It has: {listed}. Type: {example}" if names else f"Type: {example}"
    return RevisionNotFound(f"{repo_id} has no branch, tag or commit {revision!r}.{meant}", hint)


def _refs(api: HfApi, repo_id: str) -> list[str]:
    """Its branches, then its tags; empty when even that cannot be had."""
    try:
        refs = api.list_repo_refs(repo_id)
    except Exception:  # the list only makes the message better
        return []
    return [ref.name for ref in (*refs.branches, *refs.tags) if is_revision(ref.name)]  # what can be typed as it is


def _refused(error: HfHubHTTPError, api: HfApi, repo_id: str) -> QuantyardError:
    status = error.response.status_code
    if "Invalid credentials" in (error.server_message or ""):
        hint = f"Make a new one at {api.endpoint}/settings/tokens, or unset HF_TOKEN for a public model."
        return HubError("The Hub does not accept the token in HF_TOKEN (answer 401).", hint)
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return _repo_not_found(api, repo_id)
    if status == 403:
        hint = "Check what the token in HF_TOKEN may read." if api.token else "Set HF_TOKEN to one that may read it."
        return HubError(f"The Hub forbids reading {repo_id} (answer 403). {error.server_message or ''}".strip(), hint)
    if status == 429:
        hint = "Wait a few minutes and try again." + ("" if api.token else " With HF_TOKEN set, the limit is higher.")
        return HubUnreachable(f"{api.endpoint} limits our requests (answer 429, also after waiting).", hint)
    hint = "Try again later; HF_ENDPOINT chooses another Hub."
    return HubUnreachable(f"{api.endpoint} answers {status} to a request for {repo_id}.", hint)


def _repo_not_found(api: HfApi, repo_id: str) -> RepoNotFound:
    if api.token:
        message = f"The Hub shows no {repo_id} to the owner of the token in HF_TOKEN: missing, or private to others."
        return RepoNotFound(message, f"Check the name at {api.endpoint}/{repo_id}, and the token's read access to it.")
    message = f"The Hub shows no {repo_id} to a visitor without a token: missing, or private."
    return RepoNotFound(message, f"Check the name at {api.endpoint}/{repo_id}; if it is private, set HF_TOKEN.")


def bad_answer(error: BadAnswer) -> HubUnreachable:
    """An answer that was not taken, by the name of the host that gave it."""
    if isinstance(error, AskedToWait):
        return HubUnreachable(f"{error}.", "Wait until then, and type the same command again.")
    hint = "Check HF_ENDPOINT, and that no login page or proxy of the network is in between; or try again later."
    return HubUnreachable(f"{error}.", hint)


def unreachable(error: Exception, endpoint: str) -> HubUnreachable:
    """No answer, or none that a Hub would give."""
    chain = list(causes(error))
    if bad := next((c for c in chain if isinstance(c, BadAnswer)), None):
        return bad_answer(bad)
    if isinstance(error, WrongContent | EndedEarly):
        hint = "Check HF_ENDPOINT and HTTPS_PROXY, or try later."
        return HubUnreachable(f"What {endpoint} sends is not the file it lists: {error}.", hint)
    if any("CERTIFICATE_VERIFY_FAILED" in str(c) for c in chain):
        hint = "Behind a proxy that inspects TLS, give its authority: EXTRA_CA=file"
        return HubUnreachable(f"The certificate of {endpoint} is not trusted.", hint, str(error))
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachable("HF_HUB_OFFLINE forbids every request to the Hub.", "Unset HF_HUB_OFFLINE.")
    if any(isinstance(c, socket.gaierror) for c in chain):
        fact, hint = f"The name of {endpoint} cannot be resolved.", "Check the network, HF_ENDPOINT and HTTPS_PROXY."
    elif isinstance(error, httpx2.ProxyError):
        fact, hint = f"The proxy on the way to {endpoint} refuses.", "Check HTTPS_PROXY and NO_PROXY."
    elif isinstance(error, httpx2.TimeoutException):
        fact, hint = f"{endpoint} does not answer in time.", "Check the network and HTTPS_PROXY, or try later."
    elif isinstance(error, httpx2.TransportError):
        fact, hint = f"{endpoint} cannot be reached.", "Check the network, HF_ENDPOINT and HTTPS_PROXY."
    elif not isinstance(error, KeyError | TypeError | json.JSONDecodeError):
        fact = f"No request to {endpoint} can be made ({type(error).__name__})."
        hint = "Check HF_ENDPOINT, HTTPS_PROXY and EXTRA_CA."
    else:
        fact = f"{endpoint} answers, but not as a Hub does ({type(error).__name__})."
        hint = "Check HF_ENDPOINT, and that no login page of the network is in between."
    return HubUnreachable(fact, hint, str(error))
