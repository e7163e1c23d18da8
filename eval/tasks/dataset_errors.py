"""Turns errors of fetching a data set into failures. Import it after `offline.set_up_dataset_libraries`."""

from __future__ import annotations

from typing import TypeVar

import httpx2
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from quantyard.network.bounded_http import BadAnswer
from quantyard.network.hub_errors import AGAIN, AskedHub, HubProblem, hub_problem_of_error, hub_problem_of_kind
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure, stage_error_causes

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_UNUSABLE = "Leave the tasks that use it out of the suite."
E = TypeVar("E", bound=BaseException)


def is_transient_dataset_error(error: Exception) -> bool:
    """Whether a retry may help."""
    if refused := _find_dataset_error(error, HfHubHTTPError):
        return refused.response.status_code in _TRANSIENT
    if (
        "CERTIFICATE_VERIFY_FAILED" in _dataset_error_text(error)
        or _find_dataset_error(error, httpx2.ProxyError)
        or _find_dataset_error(error, BadAnswer)
    ):
        return False
    return _is_network(error)


def explain_dataset_error(error: Exception, path: str, *, has_token: bool) -> StageFailure:
    """The failure: exit code 4 for errors of the Hub or the network, 2 for a data set that cannot be used."""
    asked = AskedHub(f"the data set {path}", f"datasets/{path}", constants.ENDPOINT, has_token, again=AGAIN)
    if _find_dataset_error(error, HfHubHTTPError) or _is_network(error):
        return _dataset_network_failure(hub_problem_of_error(error, asked))
    if "Dataset scripts are no longer supported" in str(error):
        message = f"The data set {path} is a Python script, and Quantyard never runs those."
        return StageFailure(ExitCode.BAD_REQUEST, "script", message, _UNUSABLE)
    if _find_dataset_error(error, DataFilesNotFoundError):
        message = f"The data set {path} has no readable files."
        return StageFailure(ExitCode.BAD_REQUEST, "no-data", message, _UNUSABLE)
    if _find_dataset_error(error, DatasetNotFoundError):
        return _dataset_network_failure(hub_problem_of_kind("repo-not-found", asked))
    message = f"The data set {path} cannot be read: {type(error).__name__}: {_dataset_error_text(error)[:500]}"
    return StageFailure(ExitCode.BAD_REQUEST, "bad-data-set", message, _UNUSABLE)


def _dataset_network_failure(found: HubProblem) -> StageFailure:
    return StageFailure(ExitCode.NETWORK, found.kind, found.message, found.hint, found.detail)


def _is_network(error: Exception) -> bool:
    kinds = (httpx2.TransportError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return any(_find_dataset_error(error, kind) is not None for kind in kinds)


def _find_dataset_error(error: BaseException, kind: type[E]) -> E | None:
    return next((cause for cause in stage_error_causes(error) if isinstance(cause, kind)), None)


def _dataset_error_text(error: BaseException) -> str:
    """The message of the innermost cause, in one line."""
    last = list(stage_error_causes(error))[-1]
    return " ".join(str(last).split()) or type(last).__name__
