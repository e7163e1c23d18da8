"""A registry that lies, and its token service: every lie ends as an error of ours with exit code 4, soon, in little
memory, and the login goes nowhere but where it belongs.
"""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from quantyard.network import bounded_http
from quantyard.network.bounded_http import HttpBounds
from quantyard.publish.files import kept_release_file, made_release_file
from quantyard.publish.registry import client as oci_registry
from quantyard.publish.registry import upload as oci_upload
from quantyard.publish.registry.artifact import OciModel, OciReference, push_oci_model
from quantyard.publish.registry.errors import OciError, RegistryRefused
from quantyard.publish.registry.login import RegistryCredentials
from tests.hostile import liar
from tests.hostile.liar import QUICK, Lie, error_of, says
from tests.hostile.sampling import rounds, sampled
from tests.hostile.test_lying_hub import STRANGE, _elsewhere, mutated
from tests.manifests import sha256_of
from tests.unit import oci_server
from tests.unit.oci_server import SECRET, TOKEN, USER, Fault, OciServer
from tests.unit.oci_server import oci_server as running

CONTENT = "".join(f"{number:07}\n" for number in range(8_192))  # 64 KiB
ME = RegistryCredentials(USER, SECRET)
UPLOADS = "/blobs/uploads/"


@dataclass
class Yard:
    """A registry, where it lies, and what is pushed to it."""

    server: OciServer
    model: OciModel
    lies: list[tuple[str, str, Lie]] = field(default_factory=list)  # method, path, lie

    def tell(self, method: str, where: str, lie: Lie) -> None:
        self.lies.append((method, where, lie))

    def push(self, who: RegistryCredentials | None = ME) -> str:
        return push_oci_model(OciReference(self.server.address, "team/name"), self.model, who, lambda *_: None)


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    monkeypatch.setattr(oci_registry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(oci_registry, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(oci_registry, "ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(oci_upload, "CHUNK_BYTES", 32_768)
    monkeypatch.setattr(bounded_http, "BOUNDS", QUICK)
    path = tmp_path / "model.gguf"
    path.write_text(CONTENT)
    gguf = kept_release_file("Lagoon-Q4_K_M.gguf", path, sha256_of(CONTENT))
    created = datetime(2026, 11, 20, 12, tzinfo=UTC)
    model = OciModel(
        "Q4_K_M", (gguf,), (made_release_file("LICENSE", "yours"),), "llama", 135_000_000, created, {"k": "v"}
    )
    handle = oci_server._Handler.handle_any
    with running(auth="bearer") as server:
        yard = Yard(server, model)

        def lying(handler: Any) -> None:
            path = handler.path.partition("?")[0]
            told = (lie for method, where, lie in yard.lies if method == handler.command and re.search(where, path))
            if lie := next(told, None):
                server.log.append((handler.command, handler.path, handler.headers.get("Authorization", "")))
                handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                lie.tell(handler)
            else:
                handle(handler)

        monkeypatch.setattr(oci_server._Handler, "handle_any", lying)
        yield yard


def refused(yard: Yard, *, may_pass: bool = False, who: RegistryCredentials | None = ME) -> OciError | None:
    """The error of ours that a push ends with: soon, short, and without the login."""
    seen = error_of(lambda: yard.push(who), OciError, may_pass=may_pass)
    if seen is None:
        return None
    words = f"{seen.message} {seen.hint} {seen.detail}"
    assert seen.code == 4 and seen.hint and len(seen.message) < 1500, words[:3000]
    assert SECRET not in words and TOKEN not in words and oci_server._basic() not in words
    assert yard.server.address in words
    return seen


ANY = [*liar.any_text(), *liar.any_body(), *liar.any_location(307), *liar.any_wait(429), *liar.any_error(403),
       *liar.any_error(404), *liar.any_error(500), *liar.any_error(401)]  # fmt: skip
TOKEN_ANSWERS: tuple[Any, ...] = (
    {}, [], 7, None, {"token": 7}, {"token": None}, {"token": ""}, {"token": "a\r\nX-Evil: 1"}, {"token": "é"},
    {"token": "a" * 20_000}, {"token": ["a"]}, {"access_token": {"a": 1}}, {"token": "\x00"}, {"token": "a b"},
)  # fmt: skip
PLACES = (("GET", "/v2/$"), ("GET", "/token$"), ("HEAD", "/blobs/"), ("POST", UPLOADS), ("PATCH", UPLOADS),
          ("PUT", UPLOADS), ("PUT", "/manifests/"), ("GET", "/manifests/"))  # fmt: skip
EVERYWHERE = [(*place, lie) for place in PLACES for lie in ANY]
# What such a place answers is told by its status and headers alone.
UNREAD = (("GET", "/v2/$"), ("HEAD", "/blobs/"), ("POST", UPLOADS), ("PATCH", UPLOADS), ("PUT", UPLOADS),
          ("PUT", "/manifests/"))  # fmt: skip


def test_there_are_enough_lies() -> None:
    assert len(ANY) + len(TOKEN_ANSWERS) + len(REALMS) > 100


@pytest.mark.parametrize(("method", "where", "lie"), sampled(EVERYWHERE, 40), ids=str)
def test_whatever_a_registry_answers_a_push_ends_soon(yard: Yard, method: str, where: str, lie: Lie) -> None:
    yard.tell(method, where, lie)
    refused(yard, may_pass=(method, where) in UNREAD)


@pytest.mark.parametrize("said", sampled(TOKEN_ANSWERS, 6), ids=lambda said: repr(said)[:40])
def test_a_token_that_is_none_is_not_used(yard: Yard, said: Any) -> None:
    yard.tell("GET", "/token$", says("token", said))
    error = refused(yard)
    assert isinstance(error, RegistryRefused) and "sends no token" in error.message


REALMS = (
    'Bearer service="x"', "Bearer", 'Bearer realm=""', 'Bearer realm="/token"', 'Bearer realm="file:///etc/passwd"',
    'Bearer realm="ftp://127.0.0.1/"', 'Bearer realm="http://[::1"', 'Bearer realm="https://x:99999/"',
    'Bearer realm="https://me:pass@127.0.0.1/"', 'Bearer realm="https://a\x7fb/"', 'Bearer realm="https://\xff/"',
    f'Bearer realm="https://{"a" * 3000}/"', f'Bearer realm="https://{"a" * 64}.example/"', 'Bearer realm="//x/"',
    'Bearer realm="javascript:x"', 'Bearer realm="https://"', "Bearer realm=https://x", "Bearer realm", "", "Bearer ",
    'Bearer realm="http://tokens.example/"', 'Bearer realm="https://tokens.example/"', 'Bearer realm="http://[::1]:9/"',
    'Bearer realm="http://localhost:9/"', 'Bearer realm="http://127.0.0.2:9/"', 'Bearer realm="https://127.0.0.2:9/"',
    "Negotiate", 'Digest realm="x"', "Bearer " + 'a="b",' * 3000,
)  # fmt: skip


@pytest.mark.parametrize("challenge", sampled(REALMS, 12), ids=lambda text: text[:50])
def test_a_realm_that_cannot_be_trusted_gets_nothing(yard: Yard, challenge: str) -> None:
    yard.tell("GET", "/v2/$", says("who are you", {}, 401, WWW_Authenticate=challenge))
    refused(yard)
    assert not [path for _, path, _ in yard.server.log if path.startswith("/token")]


@pytest.mark.parametrize("login", [ME, RegistryCredentials(identity_token=TOKEN)])
def test_the_login_goes_to_no_other_host(yard: Yard, login: RegistryCredentials) -> None:
    seen: list[str] = []
    with _elsewhere(seen) as address:
        yard.tell("GET", "/v2/$", says("who", {}, 401, WWW_Authenticate=f'Bearer realm="{address}/t",service="r"'))
        error = refused(yard, who=login)
    assert not seen and error and "a foreign host" in error.message


def test_the_login_is_not_taken_along_where_a_token_service_leads(yard: Yard) -> None:
    seen: list[str] = []
    with _elsewhere(seen) as address:
        yard.tell("GET", "/token$", says("moved", {}, 307, Location=f"{address}/t"))
        refused(yard)
    assert not seen


@pytest.mark.parametrize(("realm", "is_its"), [
    ("https://auth.docker.io/token", True), ("https://registry-1.docker.io/t", True), ("https://evil.example/t", False),
    ("https://docker.io.evil.example/t", False), ("https://evildocker.io/t", False), ("https://127.0.0.1/t", False),
    ("https://registry-1.docker.io:5001/t", True), ("https://io/t", False),
])  # fmt: skip
def test_a_token_service_is_the_registrys_own_by_its_domain(realm: str, is_its: bool) -> None:
    assert oci_registry._is_registrys_token_service(realm, "https://registry-1.docker.io/v2") is is_its


def test_numbers_of_an_address_are_no_domain() -> None:
    assert not oci_registry._is_registrys_token_service("https://10.9.1.2/t", "https://10.8.1.2/v2")
    assert oci_registry._is_registrys_token_service("https://10.8.1.2/t", "https://10.8.1.2/v2")


@pytest.mark.parametrize("location", liar.LOCATIONS[3:], ids=lambda text: text[:40])
def test_an_upload_is_not_sent_where_nobody_can_be(yard: Yard, location: str) -> None:
    yard.tell("POST", UPLOADS, says("begun", b"", 202, Location=location))
    refused(yard)
    assert not yard.server.asked("PATCH")


@pytest.mark.parametrize(("header", "value"), [
    (name, value) for name in ("Range", "OCI-Chunk-Min-Length") for value in
    ("0-²", "²", "0-" + "9" * 5000, "9" * 5000, "-1", "0--1", "bytes=0-" + "9" * 17, "0-999999", "NaN", "0-٣", "")
])  # fmt: skip
def test_what_a_registry_says_it_has_kept_is_held_against_what_was_sent(yard: Yard, header: str, value: str) -> None:
    encoded = value.encode().decode("latin-1")
    yard.tell("GET", UPLOADS, liar.raw("kept", f"HTTP/1.1 204 No\r\n{header}: {encoded}\r\n\r\n".encode("latin-1")))
    yard.server.faults += [Fault("PATCH", UPLOADS, cut_after=20_000, times=1)]
    refused(yard, may_pass=True)


def test_more_than_was_sent_is_the_registrys_fault_and_not_the_files(yard: Yard) -> None:
    yard.tell("GET", UPLOADS, liar.raw("kept", b"HTTP/1.1 204 No\r\nRange: 0-65534\r\n\r\n"))
    yard.server.faults += [Fault("PATCH", UPLOADS, cut_after=5_000, times=1)]
    error = refused(yard)
    assert isinstance(error, RegistryRefused) and "reports 65,535 bytes kept, but only" in error.message


@pytest.mark.parametrize("length", ["²", "-1", "1" * 400, "1.5", "", "0x10"])
def test_a_length_that_is_none_is_no_traceback(yard: Yard, length: str) -> None:
    encoded = length.encode().decode("latin-1")
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {encoded}\r\n\r\n"
    yard.tell("HEAD", "/blobs/", liar.raw("size", head.encode("latin-1")))
    refused(yard, may_pass=True)


def test_a_login_that_the_registry_says_back_is_not_shown(yard: Yard) -> None:
    basic = oci_server._basic()
    words = f"{SECRET} {basic} {basic.partition(' ')[2]}"
    yard.tell("GET", "/token$", says("back", {"errors": [{"code": SECRET, "message": words}]}, 418))
    error = refused(yard)
    assert error and "(the login)" in error.message


@pytest.mark.parametrize("lie", [
    liar.endless("endless", liar.ok()), liar.bomb("gzip", "gzip"), liar.bomb("gzip in gzip", "gzip, gzip"),
    says("values", b'{"token":[' + b"[]," * 1_300_000 + b"[]]}"),
], ids=str)  # fmt: skip
def test_no_answer_takes_much_memory_with_the_products_own_bounds(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, lie: Lie
) -> None:
    monkeypatch.setattr(bounded_http, "BOUNDS", HttpBounds())
    yard.tell("GET", "/token$", lie)
    tracemalloc.start()
    try:
        with pytest.raises(OciError):
            yard.push()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * HttpBounds().answer_bytes


@pytest.mark.parametrize("seed", range(rounds(sample=8, whole=200)))
def test_headers_and_bodies_changed_at_random_never_end_in_an_error_that_is_not_ours(yard: Yard, seed: int) -> None:
    rng = random.Random(seed)
    texts = [str(value) for value in STRANGE] + list(liar.LOCATIONS) + list(liar.WAITS) + ["0-7", "\x80", "a,b"]
    names = ("Location", "Range", "OCI-Chunk-Min-Length", "Retry-After", "WWW-Authenticate", "Docker-Content-Digest",
             "Content-Encoding", "Link", "Set-Cookie")  # fmt: skip
    for method, where in rng.sample(PLACES, 2):
        headers = {name: rng.choice(texts).encode().decode("latin-1") for name in rng.sample(names, 3)}
        clean = {name: value for name, value in headers.items() if "\n" not in value and "\r" not in value}
        body = mutated({"token": "t", "errors": [{"code": "A", "message": "b"}]}, rng)
        yard.tell(method, where, says("odd", body, rng.choice((200, 201, 202, 204, 307, 401, 404, 429, 500)), **clean))
    refused(yard, may_pass=True, who=rng.choice((ME, None, RegistryCredentials(identity_token=TOKEN))))
