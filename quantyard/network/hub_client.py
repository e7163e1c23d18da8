"""huggingface_hub's client with every answer bounded and checked before the library sees it.

The library trusts its answers: it waits as long as a header says, reads bodies of any size, follows every redirect and
makes file names of tags. So such answers never reach it. All requests to the Hub use this client: on the host, in the
stage `fetch` and in the stage `datasets`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]
from huggingface_hub.utils._http import default_client_factory

from quantyard.formats.names import shown_name
from quantyard.network.bounded_http import (
    BadAnswer,
    HttpBorder,
    bound_http_client,
    http_address_fault,
    http_byte_count,
    http_request_host,
    http_request_secret,
    http_text_without_secret,
    retry_after_s,
)
from quantyard.network.hub_answers import HubBatch, WrongForm, checked_hub_answer, cut_hub_text, plain_hub_error

CONNECT_TIMEOUT_S: Final = 20.0
WRITE_TIMEOUT_S: Final = 60.0  # until a part of the body goes on
ANSWER_TIMEOUT_S: Final = 300.0  # until an answer begins: a commit of many large files takes minutes
LONGEST_WAIT_S: Final = 330.0  # the Hub counts requests in windows of five minutes
MAX_PAGES: Final = 200  # of one list
_API: Final = re.compile(r".*(?:/api/|\.git/info/lfs/).*")
_TAG: Final = re.compile(r'(?:W/)?"?[A-Za-z0-9_.+=:-]{1,200}"?')
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_NEXT: Final = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?')
_READY: Final[list[bool]] = []


class AskedToWait(BadAnswer):
    """The Hub limits our requests for a long time; the library would sleep for all of it."""


def use_bounded_hub_client() -> None:
    """Make huggingface_hub use only this client from now on, in this process."""
    if _READY:
        return
    constants.HF_HUB_DISABLE_TELEMETRY = True  # else its first request asks for a list of agents, 3 s at worst
    constants.HF_HUB_DISABLE_XET = True  # Xet uses its own, unbounded client
    set_client_factory(bounded_hub_client)
    _READY.append(True)


def bounded_hub_client() -> httpx2.Client:
    """A client for the Hub."""
    client = default_client_factory()
    client.timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=ANSWER_TIMEOUT_S, write=WRITE_TIMEOUT_S)
    return bound_http_client(client, HubBorder())


class HubBorder(HttpBorder):
    """What the Hub, or a host that claims to be one, may answer."""

    def __init__(self) -> None:
        self._pages: Counter[str] = Counter()

    def is_file(self, request: httpx2.Request) -> bool:
        """Every answer outside the API is a file, also from the hosts that the Hub redirects to."""
        return request.method == "GET" and not _API.fullmatch(request.url.path)

    def clean(self, request: httpx2.Request, status: int, headers: httpx2.Headers) -> None:
        """Check or remove each header that the library turns into a file name, a number or an address."""
        if status >= 400 and (asked_s := hub_asked_to_wait_s(headers)) > LONGEST_WAIT_S:
            fault = f"wants fewer requests (answer {status}), and to be asked again in {asked_s:.0f} s"
            raise AskedToWait(http_request_host(request), fault)
        for name in ("ETag", "X-Linked-Etag"):
            if name in headers and (not _TAG.fullmatch(headers[name]) or ".." in headers[name]):
                headers.pop(name)
        if "X-Repo-Commit" in headers and not _COMMIT.fullmatch(headers["X-Repo-Commit"]):
            headers.pop("X-Repo-Commit")
        if "X-Linked-Size" in headers and http_byte_count(headers["X-Linked-Size"]) is None:
            headers.pop("X-Linked-Size")
        if "X-Error-Message" in headers:
            headers["X-Error-Message"] = cut_hub_text(
                http_text_without_secret(http_request_secret(request), headers["X-Error-Message"])
            )
        headers.pop("X-HF-Warning", None)  # the library logs it unescaped
        self._check_next(request, headers.get("Link", ""))

    def _check_next(self, request: httpx2.Request, link: str) -> None:
        """Check the next page of a list: same host, since the token is sent along, and not too many pages."""
        found = _NEXT.search(link)
        if found is None:
            return
        try:
            is_here = request.url.join(found[1]).origin == request.url.origin
        except httpx2.InvalidURL:
            is_here = False
        if not is_here:
            raise BadAnswer(http_request_host(request), f"names a next page on another host: {shown_name(found[1])}")
        place = f"{http_request_host(request)}{request.url.path}"
        self._pages[place] = self._pages[place] + 1 if "cursor" in request.url.params else 1
        if self._pages[place] > MAX_PAGES:
            raise BadAnswer(http_request_host(request), f"answers with a list of more than {MAX_PAGES} pages")

    def content(self, request: httpx2.Request, status: int, content: bytes) -> bytes:
        """Of an error, only its message; of any other answer of the API, only the checked fields."""
        if status >= 400:
            return plain_hub_error(content, http_request_secret(request))
        if not _API.fullmatch(request.url.path) or not 200 <= status < 300:
            return content
        path = request.url.raw_path.decode("ascii", "replace").partition("?")[0]
        try:
            found = checked_hub_answer(request.method, path, content)
        except WrongForm as wrong:
            fault = f"answers, but not as a Hub does: {shown_name(request.url.path)} gives {wrong}"
            raise BadAnswer(http_request_host(request), fault) from None
        if (secret := http_request_secret(request)) and secret.encode() in found:
            raise BadAnswer(http_request_host(request), "sends the token back in an answer")
        if path.endswith("/info/lfs/objects/batch"):
            _check_hub_uploads(request, found)
        return found


def _check_hub_uploads(request: httpx2.Request, content: bytes) -> None:
    """An upload uses TLS if the request did, and the token is sent to the Hub only."""
    for each in HubBatch.model_validate_json(content).objects:
        actions = [each.actions.upload, each.actions.verify] if each.actions else []
        for address in (action.href for action in actions if action):
            if fault := http_address_fault(address, request.url, is_redirect=True):
                raise BadAnswer(http_request_host(request), f"wants a file sent to {fault}: {shown_name(address)}")
        verify = each.actions.verify if each.actions else None
        if verify and httpx2.URL(verify.href).origin != request.url.origin:
            raise BadAnswer(http_request_host(request), f"wants the token sent to {shown_name(verify.href)}")


def hub_asked_to_wait_s(headers: httpx2.Headers) -> float:
    """Seconds until the Hub wants to be asked again; 0: it does not say."""
    limit = parse_ratelimit_headers(headers)
    asked_s = retry_after_s(headers)
    return asked_s if asked_s is not None else float(limit.reset_in_seconds) if limit and not limit.remaining else 0.0
