"""What is there already is respected: what a publication would do to it is told before, and takes an explicit word."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from quantyard.cli import release as commands
from quantyard.protocol.base import ExitCode
from quantyard.publish.files import git_blob_name
from quantyard.publish.registry.annotations import oci_evaluation_annotations
from quantyard.store.manifest import parse_manifest
from tests.hub_repo import Blob
from tests.hub_server import HubServer
from tests.released import PASSES, README, REPO, SOURCE_REPO, Said, Yard, lay_out, tiny
from tests.unit.oci_server import SECRET, USER, Fault, oci_server
from tests.unit.release_engine import engine_of

pytestmark = pytest.mark.commands


def _place(yard: Yard, files: dict[str, bytes]) -> None:
    """Files that somebody puts into the repo."""
    blobs = {name: Blob(content, lfs=name.endswith(".gguf")) for name, content in files.items()}
    if REPO not in yard.hub.repos:
        yard.hub.add_repo(REPO)
    yard.hub.repos[REPO] = yard.repo.after(blobs)


def _kinds(said: Said) -> list[str]:
    return [one["kind"] for one in said.json["objections"]]


def _holds(yard: Yard, kind: str, *argv: str) -> dict[str, str]:
    """This and nothing else is told, by every way of asking, and nothing is sent; the objection."""
    before, asked = yard.repo.commit if REPO in yard.hub.repos else "", len(yard.written())
    told = yard.publish("--dry-run", "--json", *argv)
    assert (told.code, _kinds(told)) == (ExitCode.BAD_REQUEST, [kind])
    (one,) = told.json["objections"]
    dry = yard.publish("--dry-run", *argv)
    assert dry.code == ExitCode.BAD_REQUEST and one["fact"] in dry.out and f"AGREE={kind}" in dry.out
    refused = yard.publish(*argv)
    assert refused.code == ExitCode.BAD_REQUEST and one["fact"] in refused.err and f"AGREE={kind}" in refused.err
    assert "needs-agreement" in refused.err
    assert len(yard.written()) == asked and (yard.repo.commit if REPO in yard.hub.repos else "") == before
    return dict(one)


# ---- a card that somebody wrote or edited ------------------------------------------------------------


def test_a_release_over_ones_own_release_takes_no_word(yard: Yard) -> None:
    assert yard.publish().code == 0
    published = set(parse_manifest(yard.published()["manifest.json"], "").published)
    assert published >= {"README.md", "LICENSE", "report.html"} and "manifest.json" not in published
    told = yard.publish("--dry-run", "--json", gate="defaults: {max_mean_kld: 6}\n")
    assert (told.code, _kinds(told)) == (0, [])
    assert {entry["path"] for entry in told.json["files"] if entry["state"] == "changed"} >= {"README.md"}
    assert yard.publish(gate="defaults: {max_mean_kld: 6}\n").code == 0


@pytest.mark.parametrize("card", [b"# By hand\n", b"---\nlicense: mit\n---\n", b""])
def test_a_card_that_somebody_wrote_is_not_replaced_without_a_word(yard: Yard, card: bytes) -> None:
    _place(yard, {"README.md": card})
    assert "was not written by Quantyard" in _holds(yard, "card")["fact"]
    assert yard.publish("--agree=card").code == 0
    assert yard.published()["README.md"] != card


@pytest.mark.parametrize("edit", [
    lambda card: card + b"\n## Thanks\n", lambda card: card.replace(b"# Lagoon", b"# My Lagoon"),
    lambda card: card.replace(b"license: apache-2.0", b"license: mit"), lambda card: card.replace(b"\n", b"\r\n"),
])  # fmt: skip
def test_a_card_of_ours_that_was_edited_is_not_replaced_without_a_word(yard: Yard, edit: object) -> None:
    assert yard.publish().code == 0
    edited = edit(yard.published()["README.md"])  # type: ignore[operator]
    _place(yard, {"README.md": edited})
    assert "was edited since it was published" in _holds(yard, "card")["fact"]
    assert yard.published()["README.md"] == edited


def test_a_card_of_a_version_that_kept_no_record_may_have_been_edited(yard: Yard) -> None:
    assert yard.publish().code == 0
    manifest = parse_manifest(yard.published()["manifest.json"], "").model_copy(update={"published": {}})
    _place(yard, {"manifest.json": manifest.model_dump_json().encode(), "README.md": b"# Lagoon GGUF\n"})
    assert "may have been edited" in _holds(yard, "card")["fact"]


@pytest.mark.parametrize("argv", [("--hub-pr",), ("--hub-branch=v2",)])
def test_a_pull_request_or_a_new_branch_leaves_the_card_and_takes_no_word(yard: Yard, argv: tuple[str, ...]) -> None:
    _place(yard, {"README.md": b"# By hand\n"})
    assert yard.publish(*argv).code == 0
    assert yard.published()["README.md"] == b"# By hand\n"


def test_an_edited_card_on_the_branch_itself_is_respected(yard: Yard) -> None:
    assert yard.publish("--hub-branch=v2").code == yard.publish("--hub-branch=v2").code == 0
    yard.hub.repos[REPO] = yard.repo.after({"README.md": Blob(b"# Mine\n", lfs=False)}, "v2")
    assert "was edited since it was published" in _holds(yard, "card", "--hub-branch=v2")["fact"]


# ---- other files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LICENSE", "Lagoon-Q4_K_M.gguf", "manifest.json", "report.html"])
def test_a_file_that_somebody_put_there_is_not_replaced_without_a_word(yard: Yard, name: str) -> None:
    _place(yard, {name: tiny("Q4_K_M", made_with="by somebody") if name.endswith(".gguf") else b"somebody's"})
    assert f"that would be replaced: {name}." in _holds(yard, "files")["fact"]
    assert yard.publish("--agree=files").code == 0


@pytest.mark.parametrize("name", ["LICENSE", "Lagoon-Q4_K_M.gguf", "report.html"])
def test_a_file_of_ours_that_somebody_changed_is_not_replaced_without_a_word(yard: Yard, name: str) -> None:
    assert yard.publish().code == 0
    _place(yard, {name: tiny("Q4_K_M", made_with="by somebody") if name.endswith(".gguf") else b"somebody's"})
    assert name in _holds(yard, "files")["fact"]


def _record(yard: Yard, published: dict[str, str]) -> None:
    """Let the manifest there record these small files."""
    manifest = parse_manifest(yard.published()["manifest.json"], "").model_copy(update={"published": published})
    _place(yard, {"manifest.json": manifest.model_dump_json(indent=2).encode()})


def test_a_file_that_somebody_added_to_our_release_is_not_replaced_without_a_word(yard: Yard) -> None:
    assert yard.publish().code == 0
    kept = parse_manifest(yard.published()["manifest.json"], "").published
    _record(yard, {path: blob for path, blob in kept.items() if path != "NOTICE"})
    _place(yard, {"NOTICE": b"somebody's"})
    assert "NOTICE" in _holds(yard, "files")["fact"]


def test_what_an_earlier_release_of_ours_left_there_stays_on_record(yard: Yard) -> None:
    assert yard.publish().code == 0
    kept = parse_manifest(yard.published()["manifest.json"], "").published
    _place(yard, {"eval/old/report.md": b"another suite", "eval/old/edited.md": b"by somebody"})
    old = dict.fromkeys(("eval/old/report.md", "eval/old/edited.md"), git_blob_name(b"another suite"))
    _record(yard, {**kept, **old})
    assert yard.publish(gate="defaults: {max_mean_kld: 6}\n").code == 0
    now = parse_manifest(yard.published()["manifest.json"], "").published
    assert "eval/old/report.md" in now and "eval/old/edited.md" not in now


# ---- files of an earlier shape -----------------------------------------------------------------------


@pytest.mark.parametrize("old", [
    "Lagoon-Q4_K_M-00001-of-00002.gguf", "lagoon.Q4_K_M.gguf", "Lagoon.i1-q4_k_m.gguf", "Q4_K_M/Lagoon-Q4_K_M.gguf",
    "Q4_K_M.gguf",
])  # fmt: skip
def test_older_files_of_the_same_type_stay_beside_only_by_agreement(yard: Yard, old: str) -> None:
    _place(yard, {old: b"old"})
    told = _holds(yard, "old-files")
    assert old in told["fact"] and told["hint"] == f"Remove them first: hf repos delete-files {REPO} {old}"
    assert yard.publish("--agree=old-files").code == 0
    assert yard.published()[old] == b"old"


def test_the_command_that_is_told_removes_the_older_files(yard: Yard) -> None:
    _place(yard, {"lagoon.Q8_0.gguf": b"old", "Lagoon-Q8_0-00001-of-00002.gguf": b"old"})
    command = yard.publish().err.strip().splitlines()[-1].partition("Or remove them first: ")[2].split()
    assert command[:3] == ["hf", "repos", "delete-files"]
    hf = Path(sys.executable).with_name("hf")
    subprocess.run(
        [hf, *command[1:]], check=True, capture_output=True, env=os.environ | {"HF_ENDPOINT": yard.hub.endpoint}
    )
    assert not [path for path in yard.published() if path.endswith(".gguf")]
    assert yard.publish().code == 0


@pytest.mark.parametrize("old", ["$(reboot)-Q4_K_M.gguf", "a\x1b[2J-Q4_K_M.gguf", "a;b.Q4_K_M.gguf", "-x-Q4_K_M.gguf"])
def test_a_name_that_somebody_chose_is_in_no_command(yard: Yard, old: str) -> None:
    _place(yard, {old: b"old"})
    said = yard.publish()
    assert said.code == 2 and f"Or remove them first, in the files of {REPO}." in said.err and "\x1b[2J" not in said.err


@pytest.mark.parametrize("other", [
    "Lagoon-Q4_K_S.gguf", "Lagoon-Q4_K.gguf", "mmproj-Lagoon-Q8_0.gguf", "Lagoon.imatrix.gguf", "Q4_K_M.txt",
])  # fmt: skip
def test_files_of_other_types_are_no_objection(yard: Yard, other: str) -> None:
    _place(yard, {other: b"other"})
    assert yard.publish().code == 0
    assert yard.published()[other] == b"other"


# ---- private and gated sources -----------------------------------------------------------------------


def _with_source(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, **source: object) -> Yard:
    yard = lay_out(tmp_path, hub, monkeypatch, on_hub=True, gated=source.get("gated", False))  # type: ignore[arg-type]
    hub.repos[SOURCE_REPO] = replace(hub.repos[SOURCE_REPO], private=bool(source.get("private")))
    return yard


def test_a_private_source_is_named_on_no_public_card_without_a_word(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = _with_source(tmp_path, hub, monkeypatch, private=True)
    assert yard.publish().code == 0  # the repo is private too
    del hub.repos[REPO]
    assert "org/Lagoon is private" in _holds(yard, "private-source", "--public")["fact"]
    hub.add_repo(REPO)  # public already, whatever was asked for
    assert "org/Lagoon is private" in _holds(yard, "private-source")["fact"]
    assert yard.publish("--agree=private-source").code == 0


def _with_login(monkeypatch: pytest.MonkeyPatch, folder: Path, registry: str) -> None:
    """`docker login` to the stand-in."""
    auth = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


_THERE = {"Q8_0": b"{}"}  # a tag


@pytest.mark.parametrize(("settings", "has_login", "fact"), [
    ({}, False, "anybody may pull from"),
    ({"manifests": _THERE}, True, "anybody may pull from"),
    ({"auth": "bearer"}, True, "whether anybody may pull from"),
    ({"auth": "bearer", "manifests": _THERE}, False, "whether anybody may pull from"),
    ({"faults": [Fault("GET", "/tags/", 503, times=9)]}, False, "it answers 503"),
    (None, False, "cannot be reached"),
])  # fmt: skip
def test_a_gated_source_is_pushed_where_anybody_may_pull_only_by_agreement(
    settings: dict[str, object] | None, has_login: bool, fact: str, tmp_path: Path, hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = _with_source(tmp_path, hub, monkeypatch, gated="auto")
    with oci_server(**(settings or {})) as server:
        registry = server.address if settings is not None else "127.0.0.1:9"
        if has_login:
            _with_login(monkeypatch, tmp_path, registry)
        oci = ("--repo=", f"--oci={registry}/team/name")
        said = _holds(yard, "open-registry", *oci)
        assert "gated (auto)" in said["fact"] and fact in said["fact"] and server.asked("POST", "/uploads") == 0
        n_asked = len(server.log)
        assert yard.publish("--dry-run", "--agree=open-registry", *oci).code == 0
        assert len(server.log) == n_asked, "what is agreed to is not looked at"


@pytest.mark.parametrize("settings", [
    {"auth": "basic"}, {"auth": "basic", "manifests": _THERE}, {"auth": "bearer", "manifests": _THERE},
])  # fmt: skip
def test_a_gated_source_is_pushed_to_a_registry_of_members_without_a_word(
    settings: dict[str, object], tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = _with_source(tmp_path, hub, monkeypatch, gated="auto")
    with oci_server(**settings) as server:
        _with_login(monkeypatch, tmp_path, server.address)
        oci = ("--repo=", f"--oci={server.address}/team/name")
        assert yard.publish("--dry-run", *oci).code == 0
        assert yard.publish(*oci).code == 0


def test_a_registry_is_not_asked_about_a_source_that_is_open(yard: Yard) -> None:
    with oci_server() as server:
        assert yard.publish("--dry-run", "--repo=", f"--oci={server.address}/team/name").code == 0
        assert server.log == []


def test_a_registry_is_not_told_the_name_of_a_private_source(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = _with_source(tmp_path, hub, monkeypatch)
    manifest = yard.manifest()
    key = "org.opencontainers.image.source"
    assert key in oci_evaluation_annotations(manifest, "Q8_0", "standard")
    manifest.source.card = manifest.source.card.model_copy(update={"private": True})
    assert key not in oci_evaluation_annotations(manifest, "Q8_0", "standard")


# ---- how one agrees ----------------------------------------------------------------------------------


def test_several_are_told_at_once_and_agreed_to_at_once(yard: Yard) -> None:
    _place(yard, {"README.md": b"# Mine\n", "LICENSE": b"mine", "lagoon.Q8_0.gguf": b"old"})
    refused = yard.publish()
    assert refused.code == 2 and "AGREE=card,files,old-files" in refused.err
    assert all(word in refused.err for word in ("README.md", "LICENSE", "lagoon.Q8_0.gguf"))
    assert yard.publish("--agree=card,files").code == 2
    assert yard.publish("--agree=card,files,old-files").code == 0


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("no\n", 2)])
def test_a_yes_on_a_terminal_agrees_to_what_was_shown(
    yard: Yard, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _place(yard, {"README.md": b"# Mine\n"})
    _answer(monkeypatch, answer)
    said = yard.run("publish", f"--model={yard.model}", "--quant=Q8_0", f"--repo={REPO}", yard.budgets(PASSES))
    assert said.code == code and "was not written by Quantyard" in said.err and "Publish this?" in said.err


def test_a_release_asks_before_it_builds_and_does_not_ask_again(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(yard)
    _place(yard, {"README.md": b"# Mine\n"})
    refused = yard.publish("--suite=smoke", command="release")
    assert refused.code == 2 and "AGREE=card" in refused.err and engine.ran == []
    assert yard.publish("--suite=smoke", "--agree=card,files", command="release").code == 0
    _place(yard, {"lagoon.Q8_0.gguf": b"old", "README.md": b"# Mine\n"})
    engine.ran.clear()
    refused = yard.publish("--suite=smoke", command="release")
    assert refused.code == 2 and "AGREE=card,old-files" in refused.err and engine.ran == []
    _answer(monkeypatch, "yes\n")
    ours = (f"--model={yard.model}", "--quant=Q8_0", f"--repo={REPO}", "--suite=smoke", yard.budgets(PASSES))
    assert yard.run("release", *ours, "--quant=Q8_0,Q4_K_M").code == 0
    assert yard.published()["README.md"] != b"# Mine\n"


@pytest.mark.parametrize("given", ["everything", "card,edits", "1"])
def test_what_is_no_kind_cannot_be_agreed_to(yard: Yard, given: str) -> None:
    said = yard.publish(f"--agree={given}")
    assert said.code == 2 and "there is nothing called" in said.err and "private-source" in said.err


def _answer(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A terminal with someone who answers."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    monkeypatch.setattr(commands, "_can_terminal_ask", lambda: True)


def test_the_hash_in_the_record_is_gits_own() -> None:
    assert git_blob_name(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_name(README.encode()) == hashlib.sha1(b"blob %d\0%b" % (len(README), README.encode())).hexdigest()
