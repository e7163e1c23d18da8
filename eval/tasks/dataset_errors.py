"""What went wrong while a data set was fetched, in our words. Import it after `offline.set_up`."""

from __future__ import annotations

from typing import TypeVar

import httpx2
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quantyard.network.bounded_http import BadAnswer
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure, causes

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_AGAIN = "Type the same command again later: what has arrived is kept."
_UNUSABLE = "Leave the tasks that use it out of the suite."
E = TypeVar("E", bound=BaseException)


def is_transient(error: Exception) -> bool:
    """Whether trying again may help."""
    if refused := _find(error, HfHubHTTPError):
        return refused.response.status_code in _TRANSIENT
    if "CERTIFICATE_VERIFY_FAILED" in _text(error) or _find(error, httpx2.ProxyError) or _find(error, BadAnswer):
        return False
    return _is_network(error)


def explain(error: Exception, path: str, *, has_token: bool) -> StageFailure:
    """The failure: exit code 4 for the Hub and the way to it, 2 for a data set that cannot be used."""
    refused = _find(error, HfHubHTTPError)
    if refused is not None:
        kind, message, hint = _refused(refused, path, has_token)
        return StageFailure(ExitCode.NETWORK, kind, message, hint)
    if _is_network(error):
        kind, message, hint = _unreachable(error, path)
        return StageFailure(ExitCode.NETWORK, kind, message, hint)
    if "Dataset scripts are no longer supported" in str(error):
        message = f"The data set {path} is a Python script, which is never run."
        return StageFailure(ExitCode.BAD_REQUEST, "script", message, _UNUSABLE)
    if _find(error, DataFilesNotFoundError):
        message = f"The data set {path} holds no files that can be read."
        return StageFailure(ExitCode.BAD_REQUEST, "no-data", message, _UNUSABLE)
    if _find(error, DatasetNotFoundError):
        return StageFailure(ExitCode.NETWORK, "repo-not-found", str(error), _login(has_token))
    message = f"The data set {path} cannot be read: {type(error).__name__}: {_text(error)[:500]}"
    return StageFailure(ExitCode.BAD_REQUEST, "bad-data-set", message, _UNUSABLE)


def _refused(error: HfHubHTTPError, path: str, has_token: bool) -> tuple[str, str, str]:
    status, login = error.response.status_code, _login(has_token)
    if isinstance(error, GatedRepoError):  # before RepositoryNotFoundError, which it is a kind of
        page = f"{constants.ENDPOINT}/datasets/{path}"
        return "gated", f"The data set {path} is gated: its terms are not accepted.", f"Accept them at {page}. {login}"
    if isinstance(error, RevisionNotFoundError):
        return "revision-not-found", f"The data set {path} has no such revision.", _UNUSABLE
    if "Invalid credentials" in (error.server_message or ""):
        return "bad-token", "The Hub does not accept the token in HF_TOKEN.", "Make a new one, or unset HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return "repo-not-found", f"The Hub shows no data set {path} (answer {status}): missing or private.", login
    if status == 403:
        return "forbidden", f"The Hub forbids reading the data set {path} (answer 403).", login
    if status == 429:
        return "rate-limited", f"The Hub limits requests (answer 429) while fetching {path}.", f"{_AGAIN} {login}"
    return "hub-error", f"The Hub answered {status} while fetching the data set {path}.", _AGAIN


def _unreachable(error: Exception, path: str) -> tuple[str, str, str]:
    endpoint, text = constants.ENDPOINT, _text(error)
    if bad := _find(error, BadAnswer):
        return "bad-answer", f"The data set {path} is refused: {bad}.", "Check HF_ENDPOINT, and what is between."
    if "CERTIFICATE_VERIFY_FAILED" in text:
        message = f"The certificate of {endpoint} is not trusted: {text}"
        return "certificate", message, "Behind a proxy that inspects TLS, give its authority: EXTRA_CA=file."
    if _find(error, httpx2.ProxyError):
        return "proxy", f"The proxy does not let us through: {text}", "Check HTTPS_PROXY and NO_PROXY."
    message = f"The data set {path} could not be fetched from {endpoint}: {text}"
    return "unreachable", message, f"Check the network, HTTPS_PROXY and HF_ENDPOINT. {_AGAIN}"


def _login(has_token: bool) -> str:
    return "Check that the token's account may read it." if has_token else "Set HF_TOKEN to a token that may read it."


def _is_network(error: Exception) -> bool:
    kinds = (httpx2.TransportError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return any(_find(error, kind) is not None for kind in kinds)


def _find(error: BaseException, kind: type[E]) -> E | None:
    return next((cause for cause in causes(error) if isinstance(cause, kind)), None)


def _text(error: BaseException) -> str:
    """What the innermost cause says, in one line."""
    last = list(causes(error))[-1]
    return " ".join(str(last).split()) or type(last).__name__
