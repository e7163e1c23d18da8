"""The problems of requests to the Hub: one table of messages for the host, the stage `fetch` and the stage `datasets`.

Each problem has a kind, a fact and a hint; each caller makes its own error of it. Problems of writing to the Hub are
in publish/hub/errors.py.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantyard.network.bounded_http import UNUSABLE_PROXY, BadAnswer, is_unusable_proxy
from quantyard.network.hub_client import AskedToWait
from quantyard.network.transfer import EndedEarly, WrongContent
from quantyard.protocol.runner import stage_error_causes


@dataclass(frozen=True)
class AskedHub:
    """What was asked for, as messages name it."""

    what: str  # "org/name", or "the data set org/name"
    path: str  # its page, below the endpoint: "org/name", "datasets/org/name"
    endpoint: str
    has_token: bool
    revision: str = ""  # "" where none was named
    again: str = "Try again later."  # what to do where another try may help

    @property
    def page(self) -> str:
        """Its address in a browser."""
        return f"{self.endpoint}/{self.path}"


@dataclass(frozen=True)
class HubProblem:
    """One row of the table, filled in."""

    kind: str
    message: str
    hint: str
    detail: str = ""


Words = tuple[str, str]  # the fact, and what to do next
AGAIN: Final = "Type the same command again later: what has arrived is kept."  # for a stage that downloads
_BEARER: Final = re.compile(r"Bearer [^'\"]*")
_CHECK: Final = "Check the network, HF_ENDPOINT and HTTPS_PROXY."


def _hub_repo_gated(asked: AskedHub) -> Words:
    if asked.has_token:
        hint = f"The token in HF_TOKEN has no access yet: accept the terms at {asked.page} with its account, then wait."
    else:
        hint = f"Accept its terms at {asked.page}, then set HF_TOKEN to a token of that account."
    return f"{_hub_subject(asked)} is gated: its owner wants the terms accepted first.", hint


def _hub_repo_not_found(asked: AskedHub) -> Words:
    if asked.has_token:
        fact = f"The Hub finds no {_hub_name(asked)} for the token in HF_TOKEN: it is missing, or private to others."
        return fact, f"Check the name at {asked.page}, and the token's read access to it."
    fact = f"The Hub finds no {_hub_name(asked)} without a token: it is missing, or private."
    return fact, f"Check the name at {asked.page}; if it is private, set HF_TOKEN."


def _hub_token_bad(asked: AskedHub) -> Words:
    hint = f"Make a new one at {asked.endpoint}/settings/tokens, or unset HF_TOKEN to read public repos."
    return "The Hub does not accept the token in HF_TOKEN (answer 401).", hint


def _hub_rate_limited(asked: AskedHub) -> Words:
    more = "" if asked.has_token else " With HF_TOKEN set, the limit is higher."
    fact = f"{asked.endpoint} limits our requests (answer 429, also after waiting)."
    return fact, f"Wait some minutes. {asked.again}{more}"


# Answers of the Hub about the repo or file asked for. To add one: its kind, and its message.
_ANSWERS: Final[Mapping[str, Callable[[AskedHub], Words]]] = {
    "gated": _hub_repo_gated,
    "disabled": lambda asked: (f"The Hub has disabled {asked.what}.", f"See {asked.page} for the reason; use another."),
    "revision-not-found": lambda asked: (
        f"{_hub_subject(asked)} has no revision {asked.revision or 'of this name'}.", f"See {asked.page}/commits/main"
    ),
    "file-not-found": lambda asked: (
        f"{_hub_subject(asked)} lacks a file that it lists.", f"See {asked.page}/tree/main"
    ),
    "bad-token": _hub_token_bad,
    "repo-not-found": _hub_repo_not_found,
    "forbidden": lambda asked: (f"The Hub forbids reading {asked.what} (answer 403).", _hub_access_hint(asked)),
    "rate-limited": _hub_rate_limited,
}  # fmt: skip
# Problems on the way to the Hub, and answers that do not come from a Hub.
_ON_THE_WAY: Final[Mapping[str, Callable[[AskedHub], Words]]] = {
    "certificate": lambda asked: (
        f"The certificate of {asked.endpoint} is not trusted.",
        "If a proxy inspects TLS, name its CA certificate: EXTRA_CA=file",
    ),
    "offline": lambda _asked: ("HF_HUB_OFFLINE forbids every request to the Hub.", "Unset HF_HUB_OFFLINE."),
    "name-not-resolved": lambda asked: (f"The name of {asked.endpoint} cannot be resolved.", _CHECK),
    "proxy": lambda asked: (f"The proxy refuses to connect to {asked.endpoint}.", "Check HTTPS_PROXY and NO_PROXY."),
    "unusable-proxy": lambda asked: (f"{UNUSABLE_PROXY[0]}; {asked.endpoint} was not asked.", f"{UNUSABLE_PROXY[1]}"),
    "timeout": lambda asked: (f"{asked.endpoint} does not answer in time.", f"{_CHECK} {asked.again}"),
    "unreachable": lambda asked: (f"{asked.endpoint} cannot be reached.", f"{_CHECK} {asked.again}"),
    "not-a-hub": lambda asked: (
        f"{asked.endpoint} answers, but not as a Hub does.",
        "Check HF_ENDPOINT, and that no login page of the network answers instead.",
    ),
    "no-request": lambda asked: (
        f"No request to {asked.endpoint} can be made.", "Check HF_ENDPOINT, HTTPS_PROXY and EXTRA_CA."
    ),
}  # fmt: skip


def hub_problem_of_kind(kind: str, asked: AskedHub) -> HubProblem:
    """The problem that one of the Hub's own answers names."""
    return HubProblem(kind, *_ANSWERS[kind](asked))


def hub_problem_of_error(error: BaseException, asked: AskedHub) -> HubProblem:
    """The problem behind an error of a request for `asked`."""
    refused = next((cause for cause in stage_error_causes(error) if isinstance(cause, HfHubHTTPError)), None)
    return _hub_request_refused(refused, asked) if refused else _hub_problem_on_the_way(error, asked)


def hub_bad_answer_problem(error: BadAnswer) -> HubProblem:
    """The problem of a refused answer, with the name of its host."""
    if isinstance(error, AskedToWait):
        return HubProblem("rate-limited", f"{error}.", "Wait until then, and type the same command again.")
    hint = "Check HF_ENDPOINT, and that no login page or proxy of the network answers instead; or try again later."
    return HubProblem("bad-answer", f"{error}.", hint)


def _hub_request_refused(error: HfHubHTTPError, asked: AskedHub) -> HubProblem:
    status, words = error.response.status_code, error.server_message or ""
    if isinstance(error, GatedRepoError):  # before RepositoryNotFoundError, its base class
        return hub_problem_of_kind("gated", asked)
    if isinstance(error, DisabledRepoError):
        return hub_problem_of_kind("disabled", asked)
    if isinstance(error, RevisionNotFoundError):
        return hub_problem_of_kind("revision-not-found", asked)
    if isinstance(error, RemoteEntryNotFoundError):
        found = hub_problem_of_kind("file-not-found", asked)
        return HubProblem(found.kind, f"{_hub_subject(asked)} lacks {error.response.url.path}.", found.hint)
    if "Invalid credentials" in words:
        return hub_problem_of_kind("bad-token", asked)
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return hub_problem_of_kind("repo-not-found", asked)
    if status == 403:
        found = hub_problem_of_kind("forbidden", asked)
        return HubProblem(found.kind, f"{found.message} {words}".strip(), found.hint)
    if status == 429:
        return hub_problem_of_kind("rate-limited", asked)
    message = f"{asked.endpoint} answers {status} to a request for {asked.what}."
    return HubProblem("hub-error", message, f"{asked.again} HF_ENDPOINT chooses another Hub.")


def _hub_problem_on_the_way(error: BaseException, asked: AskedHub) -> HubProblem:
    chain = list(stage_error_causes(error))
    if bad := next((cause for cause in chain if isinstance(cause, BadAnswer)), None):
        return hub_bad_answer_problem(bad)
    if damaged := next((cause for cause in chain if isinstance(cause, WrongContent | EndedEarly)), None):
        message = f"{asked.endpoint} sends another file than it lists: {damaged}."
        return HubProblem("damaged-file", message, f"Check HF_ENDPOINT and HTTPS_PROXY. {asked.again}")
    kind = _hub_error_kind(chain)
    return HubProblem(kind, *_ON_THE_WAY[kind](asked), detail=_innermost_hub_error(chain))


def _hub_error_kind(chain: list[BaseException]) -> str:
    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if any("CERTIFICATE_VERIFY_FAILED" in str(cause) for cause in chain):
        return "certificate"
    if any(map(is_unusable_proxy, chain)):
        return "unusable-proxy"
    if has(OfflineModeIsEnabled):
        return "offline"
    if has(socket.gaierror):
        return "name-not-resolved"
    if has(httpx2.ProxyError):
        return "proxy"
    if has(httpx2.TimeoutException, TimeoutError):
        return "timeout"
    if has(httpx2.TransportError, ConnectionError):
        return "unreachable"
    return "not-a-hub" if has(KeyError, TypeError, json.JSONDecodeError) else "no-request"


def _innermost_hub_error(chain: list[BaseException]) -> str:
    """The message of the first cause, on one line, with its type; without a token, which an illegal header shows."""
    words = _BEARER.sub("Bearer (the token)", " ".join(str(chain[-1]).split()))
    return f"{type(chain[-1]).__name__}: {words}".removesuffix(": ")


def _hub_access_hint(asked: AskedHub) -> str:
    return "Check what the token in HF_TOKEN may read." if asked.has_token else "Set HF_TOKEN to one that may read it."


def _hub_subject(asked: AskedHub) -> str:
    return asked.what[:1].upper() + asked.what[1:] if asked.what.startswith("the ") else asked.what


def _hub_name(asked: AskedHub) -> str:
    return asked.what.removeprefix("the ")
