"""Shared stores of real kinds: a folder, two mounts of GlusterFS, a server of S3, and those that are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantyard.errors import QuantyardError
from quantyard.shared_store.open_store import open_object_store
from quantyard.shared_store.s3_objects import S3Objects
from tests.cluster.shared_stores import KEYS, gluster_mounts, moto_server, run_apart, without_conditions
from tests.conftest import run

_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Place:
    """A store: its URLs, of which each is one machine's, and the server's address."""

    urls: list[str]
    address: str = ""


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with moto_server() as address:
        yield address


@pytest.fixture(scope="module")
def gluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    if not (_ROOT and shutil.which("glusterd") and Path("/dev/fuse").exists()):
        pytest.skip("GlusterFS needs root, /dev/fuse and glusterfs-server")
    with gluster_mounts(tmp_path_factory.mktemp("gluster")) as mounts:
        yield mounts


@pytest.fixture(params=["folder", "s3", pytest.param("gluster", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of store."""
    if request.param == "s3":
        return Place([f"s3://yard/{tmp_path.name}"], request.getfixturevalue("moto"))
    if request.param == "gluster":
        return Place([f"{url}/{tmp_path.name}" for url in request.getfixturevalue("gluster")])
    return Place([str(tmp_path / "yard")])


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of a store in the bucket, for this process."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(name, value)
    return f"s3://yard/{tmp_path.name}"


def _assert_one_wins(place: Place, n_rounds: int) -> None:
    for each in run_apart("race", n_rounds, *place.urls, address=place.address):
        assert each["told"] == ["differs"] * 15 + ["won"] and len(each["read"]) == 1


def test_of_sixteen_commits_of_one_key_at_once_one_wins(tmp_path: Path) -> None:
    _assert_one_wins(Place([str(tmp_path / "yard")]), 3)


@pytest.mark.slow  # a process needs a second to start a client of S3
def test_of_sixteen_commits_of_one_key_at_once_one_wins_in_every_kind_of_store(place: Place) -> None:
    _assert_one_wins(place, 10)


def _assert_survives_kills(place: Place, n_kills: int) -> None:
    found = run_apart("kills", n_kills, *place.urls, address=place.address)
    assert found["killed"] >= n_kills and found["results"] > 0
    assert found["damaged"] == [] and found["left"] == []


def test_committers_that_are_killed_damage_nothing_and_gc_removes_what_they_left(tmp_path: Path) -> None:
    _assert_survives_kills(Place([str(tmp_path / "yard")]), 8)


@pytest.mark.slow  # as above: of eight clients of S3, all may be killed before they have started
def test_two_hundred_killed_committers_damage_nothing(place: Place) -> None:
    _assert_survives_kills(place, 200)


@pytest.mark.slow
def test_two_mounts_of_glusterfs_have_one_winner(gluster: list[str]) -> None:
    from quantyard.shared_store.posix_objects import PosixObjects
    from quantyard.shared_store.store_probe import probe_store

    assert probe_store(*(lambda url=url: PosixObjects(Path(url)) for url in gluster), n_rounds=10).problems == ()


def test_doctor_refuses_a_server_that_ignores_the_condition_and_names_the_reason(moto: str, tmp_path: Path) -> None:
    with without_conditions(moto) as address:
        done = run("doctor", STORE=f"s3://yard/{tmp_path.name}", AWS_ENDPOINT_URL=address, ENGINE="local", **KEYS)
    assert done.returncode == 45
    assert "16 of 16 writers" in done.stdout and "sent in parts" in done.stdout and "If-None-Match" in done.stdout
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr


def test_a_large_file_goes_to_s3_in_parts_and_replaces_nothing(s3: str, tmp_path: Path) -> None:
    store = open_object_store(s3)
    assert isinstance(store, S3Objects)
    large, in_parts = tmp_path / "large", store.with_parts_of(5 * 2**20)
    large.write_bytes(os.urandom(11 * 2**20))
    assert in_parts.put_if_absent("cas/one", large) and not in_parts.put_if_absent("cas/one", large)
    store.read_to_file("cas/one", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()
    assert in_parts.clear_temporary(store.now()) == 0, "a lost upload in parts is aborted"


def test_objects_of_s3_are_listed_replaced_and_removed(s3: str) -> None:
    store = open_object_store(s3)
    assert list(store.names("ac/")) == [] and store.status("ac/one") is None
    store.put("ac/one", b"one")
    store.put("ac/sub/two", b"two")
    store.put("ac/one", b"three")
    assert sorted(store.names("ac/")) == ["ac/one", "ac/sub/two"] and store.read_bytes("ac/one") == b"three"
    store.remove("ac/one")
    store.remove("ac/one")
    assert list(store.names("ac/")) == ["ac/sub/two"]
    with pytest.raises(FileNotFoundError):
        store.read_bytes("ac/one")


@pytest.mark.parametrize(("url", "variables", "words"), [
    ("s3://no-such-bucket/x", {}, "no such bucket"),
    ("s3://yard/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "failed"),
])  # fmt: skip
def test_faults_of_s3_are_told_without_keys(
    url: str, variables: dict[str, str], words: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(QuantyardError, match=words) as caught:
        open_object_store(url).put_if_absent("ac/one", b"one")
    said = caught.value.message + caught.value.hint
    assert url in said and not any(secret in said for secret in KEYS.values())
