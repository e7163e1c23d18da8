"""A client of OCI's distribution protocol: uploads blobs in chunks that can be resumed, then manifests; downloads both.

TLS trusts the certificates in SSL_CERT_FILE. A registry on this machine is asked with plain HTTP first, as it may have
either; every other one has TLS.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urljoin, urlsplit

from quantyard.formats.names import shown_name
from quantyard.formats.strict_json import JsonProblem, load_json
from quantyard.publish.registry.errors import (
    TRANSIENT_STATUS,
    LoginNeeded,
    OciError,
    RegistryRefused,
    plain_registry_text,
    registry_bad_answer,
    registry_refusal,
    registry_unreachable,
    registry_unusable_proxy,
)
from quantyard.publish.registry.login import DOCKER_HUB, RegistryCredentials

if TYPE_CHECKING:
    import httpx2

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONNECT_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 600.0  # a registry may hash many GB before it answers the last request of a blob
TRIES = 4
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0  # the user is waiting
MAX_ANSWER_BYTES = 4 * 1024 * 1024  # the protocol's limit for a manifest
_CHALLENGE = re.compile(r'([a-z_]{1,20})="([^"]{0,4000})"', re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]{1,16384}")
Content = Callable[[], bytes | Iterable[bytes]]  # called again for each retry


class TransientRegistryAnswer(Exception):
    """The registry is unavailable for now; `response` says why."""

    def __init__(self, response: httpx2.Response) -> None:
        super().__init__(f"it answers {response.status_code}")
        self.response = response


@dataclass
class Registry:
    """One repository of a registry, with or without a login."""

    name: str  # host[:port]
    repository: str
    credentials: RegistryCredentials | None
    actions: str = "pull,push"  # what a token is asked for
    _authorization: str = field(default="", repr=False)
    _scheme: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """A registry on this machine may have TLS or not: `ping` finds out."""
        self._scheme = "http" if is_loopback_registry(self.name) else "https"

    def __enter__(self) -> Self:
        import httpx2

        from quantyard.network.bounded_http import bound_http_client
        from quantyard.publish.registry.blob_border import BlobBorder

        is_here = is_loopback_registry(self.name)
        timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=ANSWER_TIMEOUT_S)
        # Connections to this machine need no proxy; SSL_CERT_FILE counts for them too.
        try:
            client = httpx2.Client(timeout=timeout, trust_env=not is_here, verify=httpx2.create_ssl_context())
        except (ImportError, ValueError) as error:
            raise registry_unusable_proxy(self.name, error) from error
        self._http = bound_http_client(client, BlobBorder())
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def address(self) -> str:
        """The address of its API, without a slash at the end."""
        host = "registry-1.docker.io" if self.name == DOCKER_HUB else self.name
        return f"{self._scheme}://{host}/v2"

    def ping(self) -> None:
        """Check that this is a registry that accepts us.

        Raises:
            OciError: it is not a registry, or it refuses.
        """
        response = self._plain_ping() if self._scheme == "http" else None
        response = response or self.with_retries("GET", f"{self.address}/")
        if response.status_code == 404:
            message = f"{self.name} is not a registry: {self.address}/ answers 404."
            raise RegistryRefused(message, "Name it like this: registry.example/team/name")
        self.expect(response, 200)

    def settle_scheme(self) -> None:
        """Find out whether a registry on this machine has TLS, as `ping` does too."""
        if self._scheme == "http":
            self._plain_ping()

    def _plain_ping(self) -> httpx2.Response | None:
        """The answer to a plain request; None: none to go by. A registry with TLS answers one with status 400 or a
        redirect to https, or hangs up; then its scheme is https from now on.
        """
        import httpx2

        try:
            response = self.send("GET", f"{self.address}/")
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            self._scheme = "https"
            return None
        except httpx2.TransportError:
            return None
        if response.status_code == 400 or response.headers.get("Location", "").startswith("https:"):
            self._scheme = "https"
            return None
        return None if response.status_code in TRANSIENT_STATUS else response

    def blob_size(self, digest: str) -> int | None:
        """Size in bytes of a blob; -1: it exists, size unknown; None: it does not exist."""
        response = self.with_retries("HEAD", self._url("blobs", digest))
        if response.status_code == 404:
            return None
        if response.is_redirect:  # to the storage, which may refuse HEAD
            return -1
        from quantyard.network.bounded_http import http_byte_count

        size = http_byte_count(self.expect(response, 200).headers.get("Content-Length"))
        return -1 if size is None else size

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        """Push a manifest under a tag or digest."""
        headers = {"Content-Type": MANIFEST_TYPE}
        self.expect(self.with_retries("PUT", self._url("manifests", tag), lambda: manifest, headers), 201, 200)

    def manifest(self, name: str, kinds: str = MANIFEST_TYPE) -> bytes:
        """The manifest, of one of these media types, that a tag or digest names now."""
        response = self.with_retries("GET", self._url("manifests", name), headers={"Accept": kinds})
        return self.expect(response, 200).read()

    @contextmanager
    def blob_at(self, url: str, start: int) -> Iterator[httpx2.Response]:
        """The answer of the registry, or of the storage that it leads to, with a blob from byte `start` on."""
        from quantyard.publish.registry.blob_border import IS_BLOB

        own = {"Authorization": self._authorization} if self._authorization and self._is_own(url) else {}
        headers = {"Accept-Encoding": "identity", **own} | ({"Range": f"bytes={start}-"} if start else {})
        with self._http.stream("GET", url, headers=headers, extensions={IS_BLOB: True}) as response:
            yield response

    def blob_url(self, digest: str) -> str:
        """Where the registry has a blob; a small request to it logs in, if the registry asks for that."""
        url = self._url("blobs", digest)
        self.with_retries("HEAD", url)
        return url

    def start_upload(self) -> httpx2.Response:
        """Begin a blob; the answer's `location` is the address to send it to."""
        return self.expect(self.send("POST", f"{self._url('blobs', 'uploads')}/"), 202)

    def location(self, response: httpx2.Response) -> str:
        """The address where an answer continues: absolute, and with TLS if the registry has it."""
        said = urljoin(str(response.request.url), response.headers.get("Location", str(response.request.url)))
        own, there = urlsplit(self.address), urlsplit(said)
        if self._is_own(said):
            return there._replace(scheme=own.scheme, netloc=own.netloc).geturl()
        is_safe = there.scheme == "https" or (there.scheme == "http" and is_loopback_registry(there.netloc))
        if not is_safe or not _registry_host_and_port(said)[0]:
            shown = plain_registry_text(said)[:120]
            message = f"The registry {self.name} wants the upload sent to {shown}, which is not safe."
            raise RegistryRefused(message, "Ask its owner to set its external address to https.")
        return said

    def expect(self, response: httpx2.Response, *statuses: int) -> httpx2.Response:
        """The response, if its status is one of these; otherwise raise the error it means."""
        if response.status_code in statuses:
            return response
        if response.status_code in TRANSIENT_STATUS:
            raise TransientRegistryAnswer(response)
        raise self._refusal(response)

    def _refusal(self, response: httpx2.Response) -> OciError:
        note = self.credentials.note if self.credentials is not None else ""
        return registry_refusal(response, self.name, self.repository, logged_in=bool(self.credentials), note=note)

    def with_retries(
        self, method: str, url: str, content: Content | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send a request that may be repeated: after 1, 2 and 4 s, or when the registry asks for."""
        import httpx2

        for failed in range(1, TRIES + 1):
            try:
                response = self.send(method, url, content, headers)
                if response.status_code not in TRANSIENT_STATUS:
                    return response
                raise TransientRegistryAnswer(response)
            except (httpx2.TransportError, TransientRegistryAnswer) as error:
                if isinstance(error, httpx2.ConnectError):  # nothing listens there, or not TLS: a retry would not help
                    raise registry_unreachable(self.name, error) from error
                self.backoff(failed, error)
        raise AssertionError("the last try returns or raises")

    def backoff(self, failed: int, error: Exception) -> None:
        """Wait before the next try: 1, 2, 4 … s, or as long as the registry asks for; after `TRIES` it is an error."""
        from quantyard.network.bounded_http import BadAnswer, retry_after_s

        if isinstance(error, BadAnswer):
            raise registry_bad_answer(self.name, error) from error
        response = error.response if isinstance(error, TransientRegistryAnswer) else None
        if failed >= TRIES:
            raise (self._refusal(response) if response else registry_unreachable(self.name, error)) from error
        asked_s = retry_after_s(response.headers) if response else None
        time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (failed - 1) if asked_s is None else asked_s))

    def send(
        self, method: str, url: str, content: Content | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """One request, repeated once if the registry asks for a login. `TransportError`s are left to the caller."""
        response = self._once(method, url, content, headers)
        if response.status_code == 401 and self._is_own(url) and self._log_in(response):
            response = self._once(method, url, content, headers)
        return response

    def _once(
        self, method: str, url: str, content: Content | None, headers: Mapping[str, str] | None
    ) -> httpx2.Response:
        more = {"Authorization": self._authorization} if self._authorization and self._is_own(url) else {}
        # Only the registry gets the token; a signed address of its storage needs none.
        body = content() if content else b"" if method in ("POST", "PUT", "PATCH") else None
        return self._ask(method, url, content=body, headers={**(headers or {}), **more})

    def _ask(self, method: str, url: str, **more: Any) -> httpx2.Response:
        from quantyard.network.bounded_http import READING, Reading

        extensions: dict[str, object] = {READING: Reading(MAX_ANSWER_BYTES)}
        return self._http.request(method, url, extensions=extensions, **more)

    def _is_own(self, url: str) -> bool:
        return _registry_host_and_port(url) == _registry_host_and_port(self.address)

    def _log_in(self, response: httpx2.Response) -> bool:
        """Answer the registry's challenge; False: we have no login to answer with."""
        for challenge in response.headers.get_list("WWW-Authenticate"):
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "bearer":
                return self._fetch_token(dict(_CHALLENGE.findall(rest)))
            if scheme.lower() == "basic" and self.credentials and self.credentials.username:
                self._authorization = _registry_basic_auth(self.credentials)
                return True
        return False

    def _fetch_token(self, challenge: Mapping[str, str]) -> bool:
        """Get a token for all `actions`: the challenge of a HEAD would name pulling only."""
        realm, login = challenge.get("realm", ""), self.credentials
        self._check_realm(realm)
        asked = {"scope": f"repository:{self.repository}:{self.actions}"}
        asked |= {"service": challenge["service"]} if "service" in challenge else {}
        if login and login.identity_token:
            more = {"grant_type": "refresh_token", "refresh_token": login.identity_token, "client_id": "quantyard"}
            response = self._ask("POST", realm, data=asked | more)
        else:
            headers = {"Authorization": _registry_basic_auth(login)} if login else {}
            response = self._ask("GET", realm, params=asked, headers=headers)
        if response.status_code in (400, 401, 403):
            return False
        self._authorization = f"Bearer {self._token_in(self.expect(response, 200).content, realm)}"
        return True

    def _token_in(self, content: bytes, realm: str) -> str:
        try:
            said = load_json(content, MAX_ANSWER_BYTES)
        except JsonProblem as problem:
            said, why = None, str(problem)
        else:
            why = "the answer has no token"
        token = (said.get("token") or said.get("access_token")) if isinstance(said, dict) else None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            message = f"The token service of {self.name}, {urlsplit(realm).netloc}, sends no token ({why})."
            raise RegistryRefused(plain_registry_text(message) + ".", "Try later, or ask its owner.")
        return token

    def _check_realm(self, realm: str) -> None:
        """Check the token service that the registry names: it gets the login, so it needs TLS and the same domain."""
        import httpx2

        from quantyard.network.bounded_http import http_address_fault

        fault = (
            http_address_fault(realm, httpx2.URL(self.address), is_redirect=False) if "://" in realm else "no address"
        )
        if fault:
            message = f"The registry {self.name} names {fault} as its token service: {shown_name(realm)}."
            raise RegistryRefused(message, "Ask its owner to set an https address.")
        there = urlsplit(realm)
        if there.scheme != "https" and not is_loopback_registry(there.netloc):
            shown = plain_registry_text(realm)[:120]
            message = f"The registry {self.name} wants the login sent to {shown}, without encryption."
            raise LoginNeeded(message, "Ask its owner to set its token service to https.")
        if self.credentials and not _is_registrys_token_service(realm, self.address):
            shown = plain_registry_text(there.netloc)[:120]
            message = f"The registry {self.name} wants the login sent to {shown}, a foreign host."
            hint = f"Ask its owner for a token service of its own domain; or push without: docker logout {self.name}"
            raise LoginNeeded(message, hint)

    def _url(self, kind: str, name: str) -> str:
        return f"{self.address}/{self.repository}/{kind}/{quote(name, safe=':')}"


def is_loopback_registry(netloc: str) -> bool:
    """Whether host[:port] is this machine, judged by the name alone, without a resolver."""
    try:
        host = urlsplit(f"//{netloc}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_registrys_token_service(realm: str, address: str) -> bool:
    """Whether a token service is the registry's own: the same address, or with https the same host or domain."""
    (host, port), (own_host, own_port) = _registry_host_and_port(realm), _registry_host_and_port(address)
    if urlsplit(realm).scheme != "https":
        return (host, port) == (own_host, own_port)
    domains = [name.rpartition(".")[0].rpartition(".")[2] + "." + name.rpartition(".")[2] for name in (host, own_host)]
    return host == own_host or (domains[0] == domains[1] and not host.replace(".", "").isdigit() and ":" not in host)


def _registry_basic_auth(login: RegistryCredentials) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.secret}".encode()).decode()


def _registry_host_and_port(url: str) -> tuple[str, int]:
    """Host and port; a registry behind a proxy may say http although it is reached by https."""
    try:
        there = urlsplit(url)
        host, port = there.hostname or "", there.port or 443
    except ValueError:  # an impossible port, so not the registry's own
        return "", 0
    return host, port
