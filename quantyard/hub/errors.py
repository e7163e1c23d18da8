"""What went wrong at the Hub, as errors of ours; the words are those of network/hub_errors.py."""

from __future__ import annotations

import difflib

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError

from quantyard.errors import HubError, HubUnreachable, QuantyardError, RepoGated, RepoNotFound, RevisionNotFound
from quantyard.hub.files import is_revision
from quantyard.network.bounded_http import BadAnswer
from quantyard.network.hub_errors import Asked, HubProblem, answered, problem_of
from quantyard.network.hub_errors import bad_answer as bad_answer_problem

_REFS_SHOWN = 8
# Kinds of problems whose errors are not `HubUnreachable`.
_CLASSES = {
    "gated": RepoGated, "repo-not-found": RepoNotFound, "revision-not-found": RevisionNotFound,
    "disabled": HubError, "bad-token": HubError, "forbidden": HubError,
}  # fmt: skip


def explain(error: Exception, api: HfApi, repo_id: str, revision: str | None) -> QuantyardError:
    """The error to raise in place of one that a call of `api` about `repo_id` raised."""
    if isinstance(error, RevisionNotFoundError):
        return _revision_not_found(api, repo_id, revision or "main")
    return _error_of(problem_of(error, _asked(api, repo_id)))


def gated(api: HfApi, repo_id: str) -> QuantyardError:
    """The terms of this repo are not accepted, as far as the Hub can tell who asks."""
    return _error_of(answered("gated", _asked(api, repo_id)))


def disabled(api: HfApi, repo_id: str) -> QuantyardError:
    """The Hub itself has locked this repo."""
    return _error_of(answered("disabled", _asked(api, repo_id)))


def bad_answer(error: BadAnswer) -> QuantyardError:
    """An answer that was not taken, by the name of the host that gave it."""
    return _error_of(bad_answer_problem(error))


def unreachable(error: Exception, endpoint: str) -> QuantyardError:
    """No answer, or none that a Hub would give."""
    return _error_of(problem_of(error, Asked("the Hub", "", endpoint, has_token=False)))


def _asked(api: HfApi, repo_id: str) -> Asked:
    return Asked(repo_id, repo_id, str(api.endpoint), has_token=bool(api.token))


def _error_of(found: HubProblem) -> QuantyardError:
    return _CLASSES.get(found.kind, HubUnreachable)(found.message, found.hint, found.detail)


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
