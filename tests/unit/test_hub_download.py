"""Downloading a release: the manifest first, then what it names and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantyard.errors import BadRequest, BadSource, HubError, HubUnreachable, RepoNotFound, RevisionNotFound
from quantyard.hub.client import HubAccess
from quantyard.hub.download import download_hub_release
from quantyard.store.manifest import SCHEMA_VERSION
from tests.hub_repo import Blob
from tests.hub_server import HubServer
from tests.manifests import manifest_of

REPO = "me/Lagoon-GGUF"
FILES = ("Lagoon-1B-Instruct-Q8_0.gguf", "Lagoon-1B-Instruct-Q4_K_M.gguf")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("quantyard.hub.client.time.sleep", lambda seconds: None)
    with HubServer() as running:
        contents = {name: name.encode() * 100 for name in FILES}
        others = {"README.md": b"# card", "report.html": b"<html>", "theirs.bin": b"x" * 5000}
        running.add_repo(REPO, contents | others | {"manifest.json": manifest_of().model_dump_json().encode()})
        yield running


def access(hub: HubServer, token: str | None = None) -> HubAccess:
    return HubAccess(hub.endpoint, token)


def changed(hub: HubServer, content: bytes) -> None:
    hub.repos[REPO] = hub.repos[REPO].after({"manifest.json": Blob(content, lfs=False)})


def test_what_the_manifest_names_is_fetched_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    folder = download_hub_release(access(hub), REPO, tmp_path)
    assert folder == tmp_path / REPO / hub.repos[REPO].commit[:12]
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"README.md", "manifest.json", *FILES}
    assert all((folder / name).read_bytes() == name.encode() * 100 for name in FILES)
    assert not hub.bodies("theirs.bin")


def test_the_manifest_is_read_before_any_other_file_is_asked_for(hub: HubServer, tmp_path: Path) -> None:
    download_hub_release(access(hub), REPO, tmp_path)
    bodies = [request.path.rsplit("/", 1)[1] for request in hub.bodies("")]
    names = [name for name in bodies if name in (*FILES, "manifest.json", "README.md")]
    assert names == ["manifest.json", "README.md", *FILES]


def test_what_is_here_already_is_not_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    folder = download_hub_release(access(hub), REPO, tmp_path)
    hub.requests.clear()
    assert download_hub_release(access(hub), REPO, tmp_path) == folder
    assert not [request for name in FILES for request in hub.bodies(name)]


def test_a_revision_is_downloaded_beside_another(hub: HubServer, tmp_path: Path) -> None:
    first = hub.repos[REPO].commit
    hub.repos[REPO] = hub.repos[REPO].after({FILES[0]: Blob(b"other", lfs=True)})
    old = download_hub_release(access(hub), f"{REPO}@{first}", tmp_path)
    new = download_hub_release(access(hub), REPO, tmp_path)
    assert old != new
    assert ((old / FILES[0]).read_bytes(), (new / FILES[0]).read_bytes()) == (FILES[0].encode() * 100, b"other")


def test_a_file_that_the_repo_has_not_is_left_for_the_check_to_miss(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"manifest.json": manifest_of().model_dump_json().encode()})
    folder = download_hub_release(access(hub), REPO, tmp_path)
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["manifest.json"]


def test_a_private_repo_is_downloaded_with_a_token_that_may_read_it(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"manifest.json": manifest_of().model_dump_json().encode()}, private=True)
    with pytest.raises(RepoNotFound):
        download_hub_release(access(hub), REPO, tmp_path)
    assert (download_hub_release(access(hub, hub.token), REPO, tmp_path) / "manifest.json").is_file()


def test_a_repo_without_a_manifest_was_not_published_by_us(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(REPO, {"README.md": b"# a model", FILES[0]: b"x"})
    with pytest.raises(BadRequest, match=f"{REPO} has no manifest.json"):
        download_hub_release(access(hub), REPO, tmp_path)
    assert not hub.bodies(FILES[0])


def _climbing() -> bytes:
    manifest = json.loads(manifest_of().model_dump_json())
    manifest["quants"]["Q8_0"]["file"] = "../../../escaped.gguf"
    return json.dumps(manifest).encode()


@pytest.mark.parametrize(("content", "says"), [
    (b"not json", "is not a manifest of Quantyard"), (b"[" * 100_000, "is not a manifest of Quantyard"),
    (b'{"layers": []}', "source: Field required"), (_climbing(), r"quants\.Q8_0\.file"),
    (json.dumps({"schema_version": SCHEMA_VERSION + 1}).encode(), f"manifest of version {SCHEMA_VERSION + 1}"),
])  # fmt: skip
def test_a_manifest_that_is_not_ours_is_refused_before_its_files_are_asked_for(
    hub: HubServer, tmp_path: Path, content: bytes, says: str
) -> None:
    changed(hub, content)
    with pytest.raises(BadRequest, match=says):
        download_hub_release(access(hub), REPO, tmp_path / "a" / "b" / "c")
    assert not [name for name in (*FILES, "escaped.gguf") if hub.bodies(name)]
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(("name", "kind"), [
    ("me/nothing", RepoNotFound), (f"{REPO}@v9", RevisionNotFound), ("no name", BadSource),
])  # fmt: skip
def test_what_is_not_on_the_hub_is_said_in_our_words(
    hub: HubServer, tmp_path: Path, name: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind) as refused:
        download_hub_release(access(hub), name, tmp_path)
    assert getattr(refused.value, "hint", "")


def test_a_hub_that_fails_in_mid_download_is_said_so(hub: HubServer, tmp_path: Path) -> None:
    hub.fail(FILES[0], status=500, times=None, retry_after=0)
    with pytest.raises(HubError) as failed:
        download_hub_release(access(hub), REPO, tmp_path)
    assert failed.value.exit_code == 4


def test_a_hub_out_of_reach_is_unreachable(tmp_path: Path, hub: HubServer) -> None:
    with pytest.raises(HubUnreachable):
        download_hub_release(HubAccess("http://127.0.0.1:9", None), REPO, tmp_path)


def test_a_download_writes_nothing_to_the_terminal(
    hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    download_hub_release(access(hub), REPO, tmp_path)
    assert tuple(capfd.readouterr()) == ("", "")
