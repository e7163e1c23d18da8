"""Translates errors of the Hub into ours; network/hub_errors.py has the messages."""

from __future__ import annotations

import difflib

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError

from quantyard.errors import HubError, HubUnreachable, QuantyardError, RepoGated, RepoNotFound, RevisionNotFound
from quantyard.hub.files import is_hub_revision
from quantyard.network.bounded_http import BadAnswer
from quantyard.network.hub_errors import AskedHub, HubProblem, hub_problem_of_error, hub_problem_of_kind
from quantyard.network.hub_errors import hub_bad_answer_problem as bad_answer_problem

_REFS_SHOWN = 8
# Kinds of problems whose errors are not `HubUnreachable`.
_CLASSES = {
    "gated": RepoGated, "repo-not-found": RepoNotFound, "revision-not-found": RevisionNotFound,
    "disabled": HubError, "bad-token": HubError, "forbidden": HubError,
}  # fmt: skip


def explain_hub_error(error: Exception, api: HfApi, repo_id: str, revision: str | None) -> QuantyardError:
    """Our error for one that a call of `api` about `repo_id` raised."""
    if isinstance(error, RevisionNotFoundError):
        return _hub_revision_not_found(api, repo_id, revision or "main")
    return _error_of_hub_problem(hub_problem_of_error(error, _asked_hub(api, repo_id)))


def hub_gated_error(api: HfApi, repo_id: str) -> QuantyardError:
    """The error if the repo's terms are not accepted by the token's user."""
    return _error_of_hub_problem(hub_problem_of_kind("gated", _asked_hub(api, repo_id)))


def hub_disabled_error(api: HfApi, repo_id: str) -> QuantyardError:
    """The error if the Hub has disabled the repo."""
    return _error_of_hub_problem(hub_problem_of_kind("disabled", _asked_hub(api, repo_id)))


def hub_bad_answer_error(error: BadAnswer) -> QuantyardError:
    """The error for a refused answer; names the host."""
    return _error_of_hub_problem(bad_answer_problem(error))


def hub_unreachable_error(error: Exception, endpoint: str) -> QuantyardError:
    """The error if there is no answer, or not one of a Hub."""
    return _error_of_hub_problem(hub_problem_of_error(error, AskedHub("the Hub", "", endpoint, has_token=False)))


def _asked_hub(api: HfApi, repo_id: str) -> AskedHub:
    return AskedHub(repo_id, repo_id, str(api.endpoint), has_token=bool(api.token))


def _error_of_hub_problem(found: HubProblem) -> QuantyardError:
    return _CLASSES.get(found.kind, HubUnreachable)(found.message, found.hint, found.detail)


def _hub_revision_not_found(api: HfApi, repo_id: str, revision: str) -> RevisionNotFound:
    names = _hub_refs(api, repo_id)
    near = difflib.get_close_matches(revision, names, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    listed = ", ".join(names[:_REFS_SHOWN]) + (" …" if len(names) > _REFS_SHOWN else "")
    example = f"make build MODEL={repo_id}@{(near or names or ['main'])[0]}"
    hint = f"It has: {listed}. Type: {example}" if names else f"Type: {example}"
    return RevisionNotFound(f"{repo_id} has no branch, tag or commit {revision!r}.{meant}", hint)


def _hub_refs(api: HfApi, repo_id: str) -> list[str]:
    """The branches, then the tags; empty if the query fails."""
    try:
        refs = api.list_repo_refs(repo_id)
    except Exception:  # the list only improves the message
        return []
    return [ref.name for ref in (*refs.branches, *refs.tags) if is_hub_revision(ref.name)]  # no quoting
