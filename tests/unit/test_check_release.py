"""`make verify`: what was published is found whole, and every planted fault is found and named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantyard.protocol.exit_codes import Answer
from quantyard.publish.verify import ReleaseCheck, worst_release_check
from quantyard.store.manifest import SCHEMA_VERSION
from tests.hub_repo import Blob
from tests.hub_server import HubServer
from tests.released import REPO, SOURCE_REPO, SUITE, Said, Yard, lay_out, tiny

pytestmark = pytest.mark.commands

Q8, Q4 = "Lagoon-Q8_0.gguf", "Lagoon-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A release that was published; its source is on the Hub."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        made = lay_out(tmp_path_factory.mktemp("yard"), hub, patch, on_hub=True)
        assert made.publish().code == 0
        yield made


@pytest.fixture
def yard(published: Yard, tmp_path: Path) -> Iterator[Yard]:
    """A copy of it, to be spoiled."""
    repos = dict(published.hub.repos)
    yield replace(published, root=shutil.copytree(published.root, tmp_path / "yard"))
    published.hub.repos = repos


def folder_checked(yard: Yard) -> Said:
    return yard.verify(f"--file={yard.release}", "--json")


def states(said: Said) -> dict[str, str]:
    return {check["what"]: check["state"] for check in said.json["checks"]}


def finding(said: Said, what: str) -> str:
    return next(check["finding"] for check in said.json["checks"] if check["what"] == what)


def replaced(path: Path, content: bytes) -> None:
    """Without a change to what the folder's file is a hard link of."""
    path.unlink()
    path.write_bytes(content)


def edited(yard: Yard, change: Callable[[dict[str, Any]], object]) -> None:
    """The manifest of the release, changed by hand."""
    path = yard.release / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    replaced(path, json.dumps(manifest).encode())


# ---- what is whole -----------------------------------------------------------------------------------


def test_a_folder_as_it_was_published_matches_its_manifest(yard: Yard) -> None:
    said = yard.verify(f"--file={yard.release}")
    assert said.code == 0, said.out
    assert "All checks passed: the files match the manifest." in said.out
    assert set(states(folder_checked(yard)).values()) == {"ok"}


def test_a_published_repo_is_downloaded_and_what_its_manifest_tells_of(yard: Yard) -> None:
    said = yard.verify(f"--repo={REPO}", "--json")
    assert said.code == 0, said.out
    assert states(said) == states(folder_checked(yard))
    assert {Q8, f"type of {Q8}", "record of Q8_0", f"source {SOURCE_REPO}", "card"} <= set(states(said))
    assert said.json["state"] == "ok"


def test_a_repo_is_verified_at_the_revision_that_is_named(yard: Yard) -> None:
    good = yard.repo.commit
    yard.hub.repos[REPO] = yard.repo.after({Q8: Blob(tiny("Q8_0", 9), lfs=True)})
    assert yard.verify(f"--repo={REPO}").code == Answer.VERIFY_FAILED
    assert yard.verify(f"--repo={REPO}@{good}").code == 0


def test_one_file_is_checked_alone(yard: Yard) -> None:
    (yard.release / Q8).unlink()
    said = yard.verify(f"--file={yard.release / Q4}", "--json")
    assert said.code == 0
    assert Q4 in states(said) and Q8 not in states(said)


def test_a_file_of_the_store_is_checked_beside_its_manifest_there(yard: Yard) -> None:
    assert yard.verify(f"--file={yard.file('Q6_K')}").code == 0


def test_words_that_people_wrote_around_the_numbers_are_theirs(yard: Yard) -> None:
    card = yard.release / "README.md"
    replaced(card, card.read_bytes() + b"\n## What I think\n\nIt made 5000 tokens/s at my place.\n")
    assert yard.verify(f"--file={yard.release}").code == 0


def test_a_hub_out_of_reach_proves_nothing_about_the_source(yard: Yard) -> None:
    said = yard.verify(f"--file={yard.release}", "--json", "--hf-endpoint=http://127.0.0.1:9")
    assert said.code == 0 and states(said)[f"source {SOURCE_REPO}"] == "not checked"


def test_what_was_not_checked_is_neither_good_nor_bad() -> None:
    known = {state: ReleaseCheck("x", state, "") for state in ("ok", "not checked", "failed")}  # type: ignore[arg-type]
    assert worst_release_check([known["ok"], known["not checked"]]) == "ok"
    assert worst_release_check([known["ok"], known["failed"]]) == "failed"
    assert worst_release_check([known["not checked"]]) == "not checked"


# ---- planted faults ----------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    replaced(path, bytes(content))


@pytest.mark.parametrize(("spoil", "failed", "says"), [
    (flipped, [Q8], "SHA-256"),
    (lambda path: path.unlink(), [Q8, f"type of {Q8}"], "is missing"),
    (lambda path: replaced(path, path.read_bytes()[:-5]), [Q8, f"type of {Q8}"], "bytes, the manifest says"),
    (lambda path: replaced(path, b"GGUF" + path.read_bytes()[8:] + b"xxxx"), [Q8, f"type of {Q8}"], "SHA-256"),
])  # fmt: skip
def test_a_model_that_is_not_what_was_published_is_named(
    yard: Yard, spoil: Callable[[Path], object], failed: list[str], says: str
) -> None:
    spoil(yard.release / Q8)
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED
    assert [what for what, state in states(said).items() if state == "failed"] == failed
    assert says in finding(said, Q8)
    assert f"{len(failed)} of " in yard.verify(f"--file={yard.release}").out


def test_a_type_in_the_header_that_is_not_the_manifests_is_named(yard: Yard) -> None:
    path = yard.release / Q8
    replaced(path, tiny("Q6_K"))
    edited(yard, lambda manifest: manifest["quants"]["Q8_0"].update(_facts(path)))
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED and states(said)[Q8] == "ok"
    assert finding(said, f"type of {Q8}") == "its header says Q6_K, the manifest Q8_0"


def test_a_copy_keeps_the_type_of_what_it_was_copied_from(yard: Yard) -> None:
    def copied(manifest: dict[str, Any]) -> None:
        manifest["quants"] = {"COPY": manifest["quants"]["Q8_0"]}

    edited(yard, copied)
    assert finding(folder_checked(yard), f"type of {Q8}").startswith("Q8_0, llama")
    assert states(folder_checked(yard))[f"type of {Q8}"] == "ok"


def _facts(path: Path) -> Mapping[str, object]:
    from quantyard.protocol.runner import file_sha256

    return {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}


def _made_other_bytes(manifest: dict[str, Any]) -> None:
    manifest["stages"]["quantize Q8_0"]["outputs"][0]["sha256"] = "0" * 64


def _measured_other_bytes(manifest: dict[str, Any]) -> None:
    for found in manifest["evaluations"][SUITE]["measurements"]:
        if found["file"]["label"] == "Q8_0":
            found["file"]["sha256"] = "0" * 64


@pytest.mark.parametrize(("change", "says"), [
    (_made_other_bytes, "quantize Q8_0 made a file of another hash"),
    (_measured_other_bytes, f"the suite {SUITE} measured a file with another hash"),
    (lambda manifest: manifest["stages"].pop("verify Q8_0"), "no record of verify Q8_0"),
    (lambda manifest: manifest["stages"].pop("quantize Q8_0"), "no record of quantize Q8_0"),
])  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_found_out(
    yard: Yard, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edited(yard, change)
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED
    assert says in finding(said, "record of Q8_0")
    assert states(said)["record of Q4_K_M"] == "ok"


def test_another_hash_in_the_manifest_is_found_out(yard: Yard) -> None:
    edited(yard, lambda manifest: manifest["quants"]["Q8_0"].update(sha256="0" * 64))
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED and "0" * 64 in finding(said, Q8)
    assert "another hash" in finding(said, "record of Q8_0")


@pytest.mark.parametrize(("found", "wrong"), [("0.0310", "0.0010"), ("12.6", "1.26")])
def test_a_number_changed_on_the_card_is_named(yard: Yard, found: str, wrong: str) -> None:
    card = yard.release / "README.md"
    text = card.read_text()
    assert found in text
    replaced(card, text.replace(found, wrong).encode())
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED
    assert [what for what, state in states(said).items() if state == "failed"] == ["card"]
    assert wrong in finding(said, "card") and found in finding(said, "card")


def test_a_score_changed_in_the_cards_metadata_is_named(yard: Yard) -> None:
    card = yard.release / "README.md"
    scores = re.findall(r"^      value: [0-9.]+$", card.read_text(), re.MULTILINE)
    replaced(card, card.read_text().replace(scores[0], "      value: 99.5").encode())
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED and "99.5 on the card" in finding(said, "card")


def test_a_copy_of_a_repo_under_another_name_is_as_good(yard: Yard) -> None:
    yard.hub.add_repo("team/mirror", yard.published())
    assert yard.verify("--repo=team/mirror").code == 0


def test_a_number_changed_in_the_manifest_is_not_the_cards(yard: Yard) -> None:
    def better(manifest: dict[str, Any]) -> None:
        for found in manifest["evaluations"][SUITE]["measurements"]:
            if found["file"]["label"] == "Q4_K_M":
                found["divergence"]["mean_kld"]["value"] = 0.0001

    edited(yard, better)
    assert states(folder_checked(yard))["card"] == "failed"


def test_a_folder_without_a_card_has_none_to_check(yard: Yard) -> None:
    (yard.release / "README.md").unlink()
    said = folder_checked(yard)
    assert said.code == 0 and states(said)["card"] == "not checked"


def test_a_source_commit_that_is_gone_from_the_hub_is_named(yard: Yard) -> None:
    commit = yard.hub.repos[SOURCE_REPO].commit
    yard.hub.add_repo(SOURCE_REPO, {"config.json": b"{}", "model.safetensors": b"other"})
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED
    assert commit[:12] in finding(said, f"source {SOURCE_REPO}")


def test_a_source_that_is_gone_is_named(yard: Yard) -> None:
    del yard.hub.repos[SOURCE_REPO]
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED and states(said)[f"source {SOURCE_REPO}"] == "failed"


def test_other_bytes_at_the_recorded_commit_are_named(yard: Yard) -> None:
    def other(manifest: dict[str, Any]) -> None:
        for entry in manifest["source"]["files"]:
            if entry["path"] == "model.safetensors":
                entry["sha256"] = "0" * 64

    edited(yard, other)
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED
    assert "other bytes at commit" in (words := finding(said, f"source {SOURCE_REPO}")) and "model.safetensors" in words


def test_a_source_file_that_is_not_at_the_recorded_commit_is_named(yard: Yard) -> None:
    def more(manifest: dict[str, Any]) -> None:
        manifest["source"]["files"].append({"path": "extra.safetensors", "size_bytes": 5, "sha256": "1" * 64})

    edited(yard, more)
    said = folder_checked(yard)
    assert said.code == Answer.VERIFY_FAILED and "extra.safetensors" in finding(said, f"source {SOURCE_REPO}")


# ---- what cannot be checked --------------------------------------------------------------------------


def _climbs(manifest: dict[str, Any]) -> None:
    manifest["quants"]["Q8_0"]["file"] = "../../secret.gguf"


def _climbs_in_parts(manifest: dict[str, Any]) -> None:
    manifest["quants"]["Q8_0"]["parts"] = [{"path": "/etc/passwd", "size_bytes": 1, "sha256": "0" * 64}]


@pytest.mark.parametrize(("content", "says"), [
    (None, "cannot be read: No such file"),
    (b"{", "is not a manifest of Quantyard: "),
    (b"[" * 100_000, "is not a manifest of Quantyard: "),
    (b"\xff\xfe", "is not a manifest of Quantyard: "),
    (b"[]", "is not a manifest of Quantyard: "),
    (b'{"layers": []}', "is not a manifest of Quantyard: source: Field required"),
])  # fmt: skip
def test_what_has_no_manifest_of_ours_is_refused(yard: Yard, content: bytes | None, says: str) -> None:
    path = yard.release / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    said = yard.verify(f"--file={yard.release}")
    assert said.code == 2
    assert str(path) in said.err and says in said.err


@pytest.mark.parametrize(("change", "says"), [
    (lambda m: m.update(schema_version=SCHEMA_VERSION + 1), f"is a manifest of version {SCHEMA_VERSION + 1}"),
    (_climbs, "quants.Q8_0.file"),
    (_climbs_in_parts, "quants.Q8_0.parts.0.path"),
])  # fmt: skip
@pytest.mark.parametrize("on_hub", [False, True])
def test_a_manifest_that_is_newer_or_climbs_out_of_its_folder_is_refused(
    yard: Yard, change: Callable[[dict[str, Any]], object], says: str, on_hub: bool
) -> None:
    edited(yard, change)
    content = (yard.release / "manifest.json").read_bytes()
    yard.hub.repos[REPO] = yard.repo.after({"manifest.json": Blob(content, lfs=False)})
    yard.hub.requests.clear()
    said = yard.verify(f"--repo={REPO}" if on_hub else f"--file={yard.release}")
    assert said.code == 2 and says in said.err
    assert not [r for r in yard.hub.requests if "passwd" in r.path or "secret" in r.path or ".gguf" in r.path]


@pytest.mark.parametrize(("argv", "says"), [
    ((), "Neither REPO nor FILE is given"),
    ((f"--repo={REPO}", "--file=x.gguf"), "REPO and FILE are both given"),
    (("--file=nowhere.gguf",), "There is no file or folder"),
    (("--repo=no name",), "no name"),
])  # fmt: skip
def test_a_request_that_cannot_be_is_refused(yard: Yard, argv: tuple[str, ...], says: str) -> None:
    said = yard.verify(*argv)
    assert said.code == 2 and says in said.err and "make " in said.err


def test_a_manifest_without_any_model_proves_nothing_and_is_refused(yard: Yard) -> None:
    edited(yard, lambda manifest: manifest.update(quants={}))
    for path in (yard.release, yard.release / Q8):
        said = yard.verify(f"--file={path}")
        assert said.code == 2 and "does not name any model" in said.err


def test_a_file_that_the_manifest_does_not_know_is_refused(yard: Yard) -> None:
    other = yard.release / "other.gguf"
    other.write_bytes(tiny("Q8_0"))
    said = yard.verify(f"--file={other}")
    assert said.code == 2
    assert "does not name other.gguf, only Lagoon-Q8_0.gguf, Lagoon-Q4_K_M.gguf" in said.err


# ---- faults on the Hub -------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "failed"), [(tiny("Q8_0", 9), Q8), (None, Q8)])
def test_a_repo_whose_model_was_changed_or_removed_fails(yard: Yard, content: bytes | None, failed: str) -> None:
    if content is not None:
        yard.hub.repos[REPO] = yard.repo.after({Q8: Blob(content, lfs=True)})
    else:
        left = {name: blob for name, blob in yard.repo.files.items() if name != Q8}
        yard.hub.repos[REPO] = replace(yard.repo, files=left)
    said = yard.verify(f"--repo={REPO}", "--json")
    assert said.code == Answer.VERIFY_FAILED and states(said)[failed] == "failed" and states(said)[Q4] == "ok"
