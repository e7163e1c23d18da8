"""What can go wrong on the way to a registry, for real: over HTTP, to a small server that misbehaves as told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from quantyard.publish.files import PublishedFile, kept_release_file, made_release_file
from quantyard.publish.registry import client as oci_registry
from quantyard.publish.registry import upload as oci_upload
from quantyard.publish.registry.artifact import OciModel, OciReference, oci_digest, push_oci_model
from quantyard.publish.registry.errors import (
    ArtifactChanged,
    LoginNeeded,
    OciError,
    PushDenied,
    RegistryRefused,
    RegistryUnreachable,
)
from quantyard.publish.registry.login import RegistryCredentials
from tests.manifests import sha256_of
from tests.unit.oci_server import SECRET, TOKEN, USER, Fault, OciServer, oci_server

pytestmark = pytest.mark.commands

CONTENT = "".join(f"{number:07}\n" for number in range(16_384))  # 128 KiB, no part like another
ME = RegistryCredentials(USER, SECRET)
UPLOADS = "/blobs/uploads/"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_registry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(oci_upload, "CHUNK_BYTES", 32_768)
    monkeypatch.setattr(oci_upload, "_BLOCK_BYTES", 4096)


@pytest.fixture
def server() -> Iterator[OciServer]:
    with oci_server() as started:
        yield started


@pytest.fixture
def gguf(tmp_path: Path) -> PublishedFile:
    path = tmp_path / "model.gguf"
    path.write_text(CONTENT)
    return kept_release_file("Lagoon-Q4_K_M.gguf", path, sha256_of(CONTENT))


def _model(gguf: PublishedFile) -> OciModel:
    created = datetime(2026, 11, 20, 12, tzinfo=UTC)
    return OciModel(
        "Q4_K_M", (gguf,), (made_release_file("LICENSE", "yours"),), "llama", 135_000_000, created, {"k": "v"}
    )


def _push(server: OciServer, gguf: PublishedFile, credentials: RegistryCredentials | None = None) -> str:
    return push_oci_model(_reference(server.address), _model(gguf), credentials, lambda *_: None)


def _reference(address: str) -> OciReference:
    return OciReference(address, "team/name")


def _refused(
    server: OciServer, gguf: PublishedFile, kind: type[OciError], who: RegistryCredentials | None = None
) -> OciError:
    with pytest.raises(kind) as caught:
        _push(server, gguf, who)
    assert not server.manifests, "something was tagged"
    assert caught.value.hint
    return caught.value


def test_the_quants_name_is_the_tag_and_all_bytes_arrive(server: OciServer, gguf: PublishedFile) -> None:
    seen: list[tuple[str, int, int]] = []
    digest = push_oci_model(_reference(server.address), _model(gguf), None, lambda *said: seen.append(said))
    assert digest == oci_digest(_model(gguf)) and list(server.manifests) == ["Q4_K_M"]
    assert server.blobs[f"sha256:{gguf.sha256}"] == CONTENT.encode()
    sent = [done for path, done, _ in seen if path == gguf.path]
    assert sent == sorted(sent) and sent[-1] == gguf.size_bytes and len(sent) > 30


def test_what_is_there_is_not_sent_again(server: OciServer, gguf: PublishedFile) -> None:
    first = _push(server, gguf)
    before = server.asked("PATCH")
    assert _push(server, gguf) == first
    assert server.asked("PATCH") == before and server.asked("POST") == 3


def test_the_manifest_comes_last(server: OciServer, gguf: PublishedFile) -> None:
    _push(server, gguf)
    put = [path for method, path, _ in server.log if method == "PUT"]
    assert "/manifests/" in put[-1] and all("digest=" in path for path in put[:-1])


def test_a_cut_connection_goes_on_where_it_was(server: OciServer, gguf: PublishedFile) -> None:
    server.faults += [Fault("PATCH", UPLOADS, cut_after=20_000, times=1)]
    _push(server, gguf)
    assert server.blobs[f"sha256:{gguf.sha256}"] == CONTENT.encode()
    assert server.asked("GET", UPLOADS) == 1 and server.asked("POST", UPLOADS) == 3, "it began anew"


def test_an_upload_that_the_registry_forgot_begins_anew(gguf: PublishedFile) -> None:
    with oci_server(forgets_uploads=True, faults=[Fault("PATCH", UPLOADS, cut_after=20_000)]) as server:
        _push(server, gguf)
        assert server.blobs[f"sha256:{gguf.sha256}"] == CONTENT.encode()
        assert server.asked("POST", UPLOADS) == 4


def test_connections_cut_again_and_again_are_an_error_in_the_end(server: OciServer, gguf: PublishedFile) -> None:
    server.forgets_uploads = True
    server.faults += [Fault("PATCH", UPLOADS, cut_after=10, times=99)]
    error = _refused(server, gguf, RegistryUnreachable)
    assert server.address in error.message and server.asked("PATCH") == oci_registry.TRIES


def test_a_lost_answer_to_the_last_request_of_a_blob_does_no_harm(server: OciServer, gguf: PublishedFile) -> None:
    server.faults += [Fault("PUT", UPLOADS, cut_after=0)]
    _push(server, gguf)
    assert server.blobs[f"sha256:{gguf.sha256}"] == CONTENT.encode()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_that_cannot_just_now_is_asked_again(status: int, server: OciServer, gguf: PublishedFile) -> None:
    wait = {"Retry-After": "0"}
    server.faults += [Fault(m, w, status, headers=dict(wait)) for m, w in
                      (("GET", "/v2/"), ("HEAD", "/blobs/"), ("POST", UPLOADS), ("PATCH", UPLOADS), ("PUT", "/"))]
    _push(server, gguf)
    assert not any(fault.times for fault in server.faults)


def test_a_registry_that_never_can_is_an_error(server: OciServer, gguf: PublishedFile) -> None:
    server.faults += [Fault("POST", UPLOADS, 503, "maintenance until noon", times=99)]
    error = _refused(server, gguf, RegistryUnreachable)
    assert "503" in error.message and "maintenance until noon" in error.message


def test_no_registry_there_is_said_at_once(gguf: PublishedFile) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(RegistryUnreachable, match=f"The registry {address} cannot be reached: .*refused"):
        push_oci_model(_reference(address), _model(gguf), None, lambda *_: None)


def test_a_name_that_nobody_has_is_said(gguf: PublishedFile) -> None:
    with pytest.raises(RegistryUnreachable, match=r"registry\.invalid cannot be reached") as caught:
        push_oci_model(_reference("registry.invalid"), _model(gguf), None, lambda *_: None)
    assert "curl -I https://registry.invalid/v2/" in caught.value.hint


def test_a_web_server_that_is_no_registry_is_said(server: OciServer, gguf: PublishedFile) -> None:
    server.faults += [Fault("GET", "/v2/", 404)]
    assert "is not a registry" in _refused(server, gguf, RegistryRefused).message


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_without_a_login_it_says_what_to_type(auth: str, gguf: PublishedFile) -> None:
    with oci_server(auth=auth) as server:
        error = _refused(server, gguf, LoginNeeded)
        assert "asks for a login" in error.message and error.hint == f"Type: docker login {server.address}"


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_registry_that_asks_for_a_login_hears_why_there_is_none(auth: str, gguf: PublishedFile) -> None:
    with oci_server(auth=auth) as server:
        error = _refused(server, gguf, LoginNeeded, RegistryCredentials(note="docker-credential-x is not installed"))
        assert error.message.endswith("docker-credential-x is not installed, so it was asked without a login.")
        assert "asks for a login" in error.message


def test_a_visitor_whose_helper_is_missing_pushes_where_no_login_is_asked_for(
    server: OciServer, gguf: PublishedFile
) -> None:
    _push(server, gguf, RegistryCredentials(note="docker-credential-x is not installed"))
    assert not any(authorization for _, _, authorization in server.log)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_wrong_login_is_told_from_none_and_never_shown(auth: str, gguf: PublishedFile) -> None:
    with oci_server(auth=auth) as server:
        error = _refused(server, gguf, LoginNeeded, RegistryCredentials(USER, "wr0ng"))
        assert "does not accept the login" in error.message
        assert "wr0ng" not in f"{error.message}{error.hint}{error.detail}{RegistryCredentials(USER, 'wr0ng')!r}"


@pytest.mark.parametrize(
    ("auth", "who"), [("basic", ME), ("bearer", ME), ("bearer", RegistryCredentials(identity_token=TOKEN))]
)
def test_a_login_lets_one_push(auth: str, who: RegistryCredentials, gguf: PublishedFile) -> None:
    with oci_server(auth=auth) as server:
        _push(server, gguf, who)
        assert server.blobs[f"sha256:{gguf.sha256}"] == CONTENT.encode()


def test_a_token_that_runs_out_in_mid_upload_is_renewed(gguf: PublishedFile) -> None:
    with oci_server(auth="bearer", token_uses=3) as server:
        _push(server, gguf, ME)
        assert server.blobs[f"sha256:{gguf.sha256}"] == CONTENT.encode() and len(server.tokens) > 3


def test_a_right_that_is_missing_is_told_from_a_login(server: OciServer, gguf: PublishedFile) -> None:
    server.faults += [Fault("POST", UPLOADS, 403, "requested access to the resource is denied")]
    error = _refused(server, gguf, PushDenied, ME)
    assert "does not let you push to team/name: DENIED: requested access" in error.message


@pytest.mark.parametrize(("status", "says"), [(413, "refuses so large a file"), (405, "refuses what is pushed"),
                                              (404, "does not know team/name")])
def test_a_registry_that_refuses_is_quoted(status: int, says: str, server: OciServer, gguf: PublishedFile) -> None:
    words = "not\x1b[2J here\n" * 100
    server.faults += [Fault("PATCH", UPLOADS, status, words)]
    error = _refused(server, gguf, RegistryRefused)
    assert says in error.message and "not [2J here" in error.message
    assert error.message.isprintable() and len(error.message) < 500


def test_a_refused_manifest_is_an_error(server: OciServer, gguf: PublishedFile) -> None:
    server.faults += [Fault("PUT", "/manifests/", 400, "unknown config media type")]
    assert "unknown config media type" in _refused(server, gguf, RegistryRefused).message


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "gone"])
def test_a_file_that_was_changed_is_never_tagged(damage: str, server: OciServer, gguf: PublishedFile) -> None:
    path = gguf.content
    assert isinstance(path, Path)
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(CONTENT.replace("7", "8") if damage == "other bytes" else CONTENT[:50_000])
    error = _refused(server, gguf, ArtifactChanged)
    assert gguf.path in error.message and error.code == 2
    assert f"sha256:{gguf.sha256}" not in server.blobs and not server.uploads, "the upload was left behind"


def test_a_file_that_changes_while_it_is_sent_again_is_never_tagged(server: OciServer, gguf: PublishedFile) -> None:
    """Bytes that are sent twice are hashed once: then it is the registry's own check that tells."""
    path = gguf.content
    assert isinstance(path, Path)
    server.forgets_uploads = True
    server.faults += [Fault("PATCH", UPLOADS, cut_after=4096, after=1)]

    def damage(_name: str, done: int, _total: int) -> None:
        if done > oci_upload.CHUNK_BYTES:
            path.write_text("8" + CONTENT[1:])

    with pytest.raises(ArtifactChanged):
        push_oci_model(_reference(server.address), _model(gguf), None, damage)
    assert not server.manifests and f"sha256:{gguf.sha256}" not in server.blobs


def test_somebody_elses_tag_in_between_is_noticed(server: OciServer, gguf: PublishedFile) -> None:
    server.manifests = _Overwritten()
    with pytest.raises(RegistryRefused, match="gives back"):
        _push(server, gguf)


def test_the_login_is_not_sent_where_the_uploads_go(gguf: PublishedFile) -> None:
    with oci_server() as store, oci_server(auth="basic", absolute_host=f"http://{store.address}") as server:
        place = f"/v2/team/name{UPLOADS}"
        store.uploads |= {f"{place}{number}": b"" for number in range(3)}
        with pytest.raises(RegistryRefused, match="has none of the 131072 bytes of Lagoon"):
            _push(server, gguf, ME)  # the blobs are in the store, and the registry never hears of them
        assert f"sha256:{gguf.sha256}" in store.blobs
        assert {authorization for _, _, authorization in store.log} == {""}


def test_the_login_is_not_sent_to_a_token_service_in_the_clear(server: OciServer, gguf: PublishedFile) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://tokens.example/t",service="reg"'}
    server.faults += [Fault("GET", "/v2/", 401, headers=challenge)]
    assert "http://tokens.example/t, without encryption" in _refused(server, gguf, LoginNeeded, ME).message


def test_a_token_service_that_talks_nonsense_is_said(gguf: PublishedFile) -> None:
    with oci_server(auth="bearer", faults=[Fault("GET", "/token", 200, "…")]) as server:
        assert "sends no token" in _refused(server, gguf, RegistryRefused, ME).message


def test_a_blob_that_lies_elsewhere_is_there(server: OciServer, gguf: PublishedFile) -> None:
    server.faults += [Fault("HEAD", gguf.sha256, 307, headers={"Location": "https://bytes.example/1"}, times=9)]
    _push(server, gguf)
    assert server.manifests and server.asked("POST", UPLOADS) == 2, "the licence and the configuration alone"


class _Overwritten(dict[str, bytes]):
    """Somebody else is always faster."""

    def __setitem__(self, key: str, value: bytes) -> None:
        super().__setitem__(key, b'{"schemaVersion": 2}')


@pytest.mark.parametrize("proxy", ["socks4://127.0.0.1:9", "ftp://127.0.0.1:9"])
def test_a_proxy_that_no_client_can_be_made_for_is_said(
    proxy: str, gguf: PublishedFile, server: OciServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(RegistryUnreachable, match="socks5h://") as caught:
        push_oci_model(_reference("registry.example"), _model(gguf), None, lambda *_: None)
    assert "HTTPS_PROXY=http://" in caught.value.hint
    _push(server, gguf)  # this machine needs no proxy
