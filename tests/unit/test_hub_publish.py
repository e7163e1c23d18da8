"""Publishing to the Hub: huggingface_hub's own client against a small Hub that misbehaves when told to."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from quantyard.errors import BadRequest, HubError, HubUnreachable, QuantyardError, RepoNotFound, RepoRenamed
from quantyard.hub.client import HubAccess
from quantyard.publish.files import PublishedFile, kept_release_file, made_release_file
from quantyard.publish.hub import there, upload
from quantyard.publish.hub.commit import (
    HubPublication,
    HubTarget,
    check_hub_target,
    preview_hub_publication,
    publish_to_hub,
)
from quantyard.publish.hub.errors import (
    MayNotWrite,
    NeedsToken,
    UploadRefused,
)
from quantyard.publish.hub.there import look_there
from tests.hub_repo import Blob, Repo
from tests.hub_server import HubServer, Request

pytestmark = pytest.mark.commands

ROOT = Path(__file__).parents[2]
REPO = "me/name-GGUF"
TARGET = HubTarget(REPO)
BATCH, COMMIT = f"/{REPO}.git/info/lfs/objects/batch", f"/api/models/{REPO}/commit/main"
Q4, Q8 = random.Random(1).randbytes(300_000), random.Random(2).randbytes(2_500_000)  # the second is sent in parts
PLOT = b"\x89PNG\r\n\0" + random.Random(3).randbytes(5_000)
CARD = made_release_file("README.md", "---\nlicense: apache-2.0\n---\n# Name\n")
EMPTY = made_release_file("NOTICE", b"")


@pytest.fixture
def fake_hub(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setattr("quantyard.hub.client.time.sleep", lambda seconds: None)  # the client's, too
    monkeypatch.setattr(upload, "IN_MEMORY_BYTES", 100_000)  # both GGUFs are read from disk
    hub_server.uploads.refusals.clear()
    for path in hub_server.uploads.folder.iterdir():
        path.unlink()
    return hub_server


@pytest.fixture
def release(tmp_path: Path) -> list[PublishedFile]:
    """A card, a plot, an empty file, and two GGUFs on disk."""
    files = [CARD, EMPTY, made_release_file("plots/tradeoff.png", PLOT)]
    for name, content in (("name-Q4_K_M.gguf", Q4), ("name-Q8_0.gguf", Q8)):
        (tmp_path / name).write_bytes(content)
        files.append(kept_release_file(name, tmp_path / name, hashlib.sha256(content).hexdigest()))
    return files


def access(hub: HubServer, token: str | None = "") -> HubAccess:
    return HubAccess(hub.endpoint, hub.writer if token == "" else token)


def send(
    hub: HubServer, files: list[PublishedFile], target: HubTarget = TARGET, token: str | None = "",
    on_progress: Callable[[str, int, int], None] = lambda path, done, total: None,
) -> HubPublication:  # fmt: skip
    return publish_to_hub(access(hub, token), target, files, "Publish name", on_progress)


def refused(hub: HubServer, files: list[PublishedFile], target: HubTarget = TARGET, token: str | None = "") -> str:
    """The words of the error that publishing ends with; the token is never among them."""
    with pytest.raises(QuantyardError) as caught:
        send(hub, files, target, token)
    error = caught.value
    words = f"{type(error).__name__}: {error.message} {error.hint} {error.detail}"
    assert not any(known in words for known in (*hub.accounts, *([token] if token else [])))
    return words


def content(repo: Repo | None) -> dict[str, bytes]:
    assert repo is not None
    return {name: b"".join(blob.blocks()) for name, blob in repo.files.items() if name != ".gitattributes"}


def whole(files: list[PublishedFile]) -> dict[str, bytes]:
    return {file.path: file.read() for file in files}


def puts(hub: HubServer, content: bytes | None = None) -> list[Request]:
    start = hub.uploads.path_of(content) if content else "/upload/"
    return [r for r in hub.requests if r.method == "PUT" and r.path.startswith(start)]


def calls(hub: HubServer, path: str) -> list[Request]:
    return [r for r in hub.requests if r.path == path]


def states(publication: HubPublication) -> dict[str, str]:
    return {change.path: change.state for change in publication.changes}


def push(hub: HubServer, path: str, content: bytes = b"theirs") -> None:
    """Somebody else's commit."""
    hub.repos[REPO] = hub.repos[REPO].after({path: Blob(content, lfs=False)})


# ---- A first release ---------------------------------------------------------------------------------------------


def test_a_release_becomes_one_commit_of_a_new_private_repo(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    found = send(fake_hub, release)
    repo = fake_hub.repos[REPO]
    assert (found.created, found.commit, found.pull_request) == (True, repo.commit, "")
    assert found.url == f"{fake_hub.endpoint}/{REPO}"
    assert (repo.private, content(repo)) == (True, whole(release))
    assert set(states(found).values()) == {"new"}
    assert len(list(repo.snapshots())) == 2  # the one the Hub makes, and ours


def test_a_repo_is_made_public_only_when_asked(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    send(fake_hub, release, HubTarget(REPO, private=False))
    assert not fake_hub.repos[REPO].private


def test_an_existing_repos_visibility_and_other_files_stay(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, {"README.md": b"old", "theirs.txt": b"stays"})
    found = send(fake_hub, release)
    repo = fake_hub.repos[REPO]
    assert (found.created, repo.private) == (False, False)
    assert content(repo) == {"theirs.txt": b"stays"} | whole(release)
    assert states(found)["README.md"] == "changed"


def test_large_files_are_sent_in_parts_to_the_store_which_never_sees_the_token(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    send(fake_hub, release)
    assert [r.received_bytes for r in puts(fake_hub, Q8)] == [1_000_000, 1_000_000, 500_000]
    assert [r.received_bytes for r in puts(fake_hub, Q4)] == [len(Q4)]
    assert not any(r.authorized for r in puts(fake_hub))


def test_each_file_is_announced_just_before_it_is_sent(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    send(fake_hub, release)
    steps = [r.path for r in fake_hub.requests if r.path == BATCH or r in puts(fake_hub)]
    ours = [BATCH, fake_hub.uploads.path_of(Q4), BATCH, *(fake_hub.uploads.path_of(Q8, part) for part in (1, 2, 3))]
    assert steps[-6:] == ours  # a signed address lasts for minutes


def test_progress_tells_every_byte_of_every_file(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    told: list[tuple[str, int, int]] = []
    send(fake_hub, release, on_progress=lambda path, done, total: told.append((path, done, total)))
    for file in release:
        done = [d for path, d, total in told if path == file.path and total == file.size_bytes]
        assert done == sorted(done) and done[-1] == file.size_bytes
    assert len([path for path, *_ in told if path == "name-Q8_0.gguf"]) > 30


def test_no_byte_goes_by_xet_though_it_is_installed(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    assert find_spec("hf_xet")
    send(fake_hub, release)
    assert not [r.path for r in fake_hub.requests if "xet" in r.path]


def test_what_was_published_is_read_back(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    found = send(fake_hub, release)
    last = fake_hub.requests[[r.path for r in fake_hub.requests].index(COMMIT) + 1 :]
    assert last[0].path == f"/api/models/{REPO}/paths-info/{found.commit}"
    assert [r.path for r in last[1:]] == [f"/{REPO}/resolve/{found.commit}/README.md"]  # nothing is read of LFS files


def test_a_file_that_arrives_as_something_else_is_named(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.fail(fake_hub.uploads.path_of(Q4), corrupt=True)
    words = refused(fake_hub, release)
    assert words.startswith("UploadDiffers: name-Q4_K_M.gguf arrived damaged")
    assert "stays" not in words  # the repo is not empty


def test_a_small_file_that_arrives_as_something_else_is_named(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.fail("README.md", corrupt=True)
    assert refused(fake_hub, release).startswith("UploadDiffers: README.md arrived damaged")


def test_a_file_that_the_commit_lost_is_named(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    def lose() -> None:
        del fake_hub.repos[REPO].files["name-Q8_0.gguf"]

    fake_hub.uploads.hooks["committed"] = lose
    assert refused(fake_hub, release).startswith("UploadDiffers: name-Q8_0.gguf arrived damaged")


# ---- The same again ----------------------------------------------------------------------------------------------


def test_publishing_the_same_again_makes_no_commit_and_sends_nothing(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    first = send(fake_hub, release)
    fake_hub.requests.clear()
    again = send(fake_hub, release)
    assert (again.commit, again.created, set(states(again).values())) == (first.commit, False, {"unchanged"})
    assert not puts(fake_hub) and not calls(fake_hub, COMMIT) and not calls(fake_hub, BATCH)


def test_only_what_changed_is_sent(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    send(fake_hub, release)
    fake_hub.requests.clear()
    card = made_release_file("README.md", CARD.read() + b"More.\n")
    found = send(fake_hub, [card, *release[1:]])
    assert [path for path, state in states(found).items() if state == "changed"] == ["README.md"]
    assert not puts(fake_hub)
    lines = calls(fake_hub, COMMIT)[0].said
    assert [line["value"]["path"] for line in lines[1:]] == ["README.md"]
    assert content(fake_hub.repos[REPO]) == whole([card, *release[1:]])


def test_the_content_counts_not_the_way_it_is_stored(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, whole(release), lfs=lambda name, size: False)
    assert set(states(send(fake_hub, release)).values()) == {"unchanged"}


def test_an_object_that_the_hub_has_already_is_not_sent_again(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.fail(fake_hub.uploads.path_of(Q8, 2), status=400)
    refused(fake_hub, release)
    assert puts(fake_hub, Q4)
    fake_hub.heal()
    found = send(fake_hub, release)
    assert not puts(fake_hub, Q4) and puts(fake_hub, Q8)
    assert (content(fake_hub.repos[REPO]), found.created) == (whole(release), False)


def test_a_file_that_the_repos_gitignore_names_is_published_all_the_same(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.add_repo(REPO, {".gitignore": b"*.gguf\n*.png\n"})
    send(fake_hub, release)
    assert content(fake_hub.repos[REPO]).keys() >= whole(release).keys()


# ---- Branches and pull requests ----------------------------------------------------------------------------------


def test_a_branch_is_made_of_main_when_it_is_missing(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, {"theirs.txt": b"stays"})
    found = send(fake_hub, release, HubTarget(REPO, branch="test/v2"))
    repo = fake_hub.repos[REPO]
    assert found.url == f"{fake_hub.endpoint}/{REPO}/tree/test%2Fv2"
    assert content(repo) == {"theirs.txt": b"stays"}
    assert content(repo.at("test/v2")) == {"theirs.txt": b"stays"} | whole(release)
    assert repo.at(found.commit) is repo.heads["test/v2"]


def test_a_branch_that_is_there_gets_one_commit_more(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    send(fake_hub, release[:1], HubTarget(REPO, branch="v2"))
    send(fake_hub, release, HubTarget(REPO, branch="v2"))
    branch = fake_hub.repos[REPO].at("v2")
    assert branch and content(branch) == whole(release)
    assert len(calls(fake_hub, f"/api/models/{REPO}/branch/v2")) == 1


def test_a_branch_is_made_only_once_the_files_are_there(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, {"theirs.txt": b"stays"})
    fake_hub.fail(fake_hub.uploads.path_of(Q8, 2), status=400)
    refused(fake_hub, release, HubTarget(REPO, branch="v2"))
    assert fake_hub.repos[REPO].branches == ("main",)


def test_a_branch_that_could_not_be_filled_is_spoken_of(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO)
    fake_hub.fail(f"/api/models/{REPO}/commit/v2", status=413)
    assert "The branch v2 was created, and still equals" in refused(fake_hub, release, HubTarget(REPO, branch="v2"))


def test_a_pull_request_leaves_main_alone(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, {"theirs.txt": b"stays"})
    found = send(fake_hub, release, HubTarget(REPO, pull_request=True))
    repo = fake_hub.repos[REPO]
    assert found.pull_request == f"{fake_hub.endpoint}/{REPO}/discussions/1"
    assert content(repo) == {"theirs.txt": b"stays"}
    assert content(repo.at("refs/pr/1")) == {"theirs.txt": b"stays"} | whole(release)
    assert repo.pulls == (("me", "Publish name"),)


def test_an_open_pull_request_with_the_same_files_is_not_opened_twice(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.add_repo(REPO)
    target = HubTarget(REPO, pull_request=True)
    assert send(fake_hub, release, target).pull_request == send(fake_hub, release, target).pull_request
    changed = [made_release_file("README.md", CARD.read() + b"More.\n"), *release[1:]]
    assert send(fake_hub, changed, target).pull_request.endswith("/discussions/2")


def test_a_pull_request_can_be_offered_to_somebody_elses_repo(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.add_repo("other/name-GGUF", {"theirs.txt": b"stays"})
    found = send(fake_hub, release, HubTarget("other/name-GGUF", pull_request=True))
    assert found.pull_request.endswith("/other/name-GGUF/discussions/1")


# ---- Gated sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", ["auto", "manual"])
def test_a_repo_is_gated_before_a_file_is_in_it(fake_hub: HubServer, release: list[PublishedFile], gated: str) -> None:
    send(fake_hub, release, HubTarget(REPO, gated=gated))  # type: ignore[arg-type]
    assert fake_hub.repos[REPO].gated == gated
    paths = [r.path for r in fake_hub.requests]
    assert paths.index(f"/api/models/{REPO}/settings") < paths.index(BATCH)


@pytest.mark.parametrize(("before", "wanted", "after"), [("manual", "auto", "manual"), ("auto", "manual", "manual"),
                                                         ("auto", "", "auto")])  # fmt: skip
def test_a_gate_is_never_loosened(
    fake_hub: HubServer, release: list[PublishedFile], before: str, wanted: str, after: str
) -> None:
    fake_hub.add_repo(REPO, gated=before)
    send(fake_hub, release, HubTarget(REPO, gated=wanted))  # type: ignore[arg-type]
    assert fake_hub.repos[REPO].gated == after


def test_a_repo_that_cannot_be_gated_gets_no_file(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.fail(f"/api/models/{REPO}/settings", status=403, error_message="Ask your admin", times=None)
    words = refused(fake_hub, release, HubTarget(REPO, gated="manual"))
    assert words.startswith("NotGated") and "Ask your admin" in words
    assert f"The repo {REPO} was created, and stays, empty and private." in words
    assert not puts(fake_hub) and content(fake_hub.repos[REPO]) == {}


def test_a_gate_that_is_not_there_afterwards_does_not_count(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.fail(f"/api/models/{REPO}/settings", status=200, times=None)
    assert refused(fake_hub, release, HubTarget(REPO, gated="auto")).startswith("NotGated")
    assert not puts(fake_hub)


# ---- Who may write -----------------------------------------------------------------------------------------------


def test_without_a_token_it_is_said_what_to_type_and_nobody_is_asked(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    words = refused(fake_hub, release, token=None)
    assert words.startswith("NeedsToken") and "hf auth login" in words and "HF_TOKEN" in words
    assert not fake_hub.requests
    assert issubclass(NeedsToken, BadRequest)


def test_a_token_that_may_only_read_is_found_out_first(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    words = refused(fake_hub, release, token=fake_hub.token)
    assert words.startswith("MayNotWrite: The token of me may only read") and "/settings/tokens" in words
    assert [r.path for r in fake_hub.requests] == ["/api/whoami-v2"]


def test_a_token_that_the_hub_does_not_know_is_refused(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    assert "does not accept the token in HF_TOKEN (answer 401)" in refused(fake_hub, release, token="hf_wrong_0123")


@pytest.mark.parametrize("there", [True, False])
def test_somebody_elses_repo_is_left_alone(fake_hub: HubServer, release: list[PublishedFile], there: bool) -> None:
    if there:
        fake_hub.add_repo("other/name-GGUF", {"theirs.txt": b"stays"})
    words = refused(fake_hub, release, HubTarget("other/name-GGUF"))
    assert words.startswith("MayNotWrite: The token in HF_TOKEN may not write to other/name-GGUF (answer 403)")
    assert "REPO=me/name-GGUF" in words and not puts(fake_hub)
    assert list(fake_hub.repos) == (["other/name-GGUF"] if there else [])


def test_a_name_that_is_taken_by_what_the_token_may_not_see(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, {"theirs.txt": b"stays"}, private=True)
    fake_hub.fail(f"/api/models/{REPO}/revision/main", status=404, error_code="RepoNotFound", times=None)
    words = refused(fake_hub, release)
    assert words.startswith(f"MayNotWrite: {REPO} exists already") and "was made" not in words


def test_a_renamed_repo_gives_its_new_name(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo("me/new")
    fake_hub.rename(REPO, "me/new")
    with pytest.raises(RepoRenamed, match="was renamed to me/new") as caught:
        send(fake_hub, release)
    assert caught.value.hint == "Type: REPO=me/new"


@pytest.mark.parametrize(
    "target",
    [
        HubTarget(""), HubTarget("name"), HubTarget("me/na me"), HubTarget("me/name\n"), HubTarget("../name"),
        HubTarget("me/name.git"), HubTarget("https://huggingface.co/me/name"), HubTarget("me/name@v1"),
        HubTarget("--x/y"), HubTarget(REPO, branch="a b"), HubTarget(REPO, branch="../x"),
        HubTarget(REPO, branch="refs/pr/1"), HubTarget(REPO, branch="a" * 40),
        HubTarget(REPO, branch="v2", pull_request=True),
    ],
)  # fmt: skip
def test_a_target_that_is_none_is_refused_before_the_hub_is_asked(
    fake_hub: HubServer, release: list[PublishedFile], target: HubTarget
) -> None:
    for call in (
        check_hub_target,
        lambda t: preview_hub_publication(access(fake_hub), t, release),
        lambda t: send(fake_hub, release, t),
    ):
        with pytest.raises(BadRequest) as caught:
            call(target)
        assert any(name in caught.value.hint for name in ("REPO=me/name-GGUF", "HUB_BRANCH", "pull request"))
    assert not fake_hub.requests


# ---- Files that are not what they were ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "harm", [lambda path: path.write_bytes(Q4[:-1]), lambda path: path.write_bytes(Q4[:-1] + b"!"), Path.unlink]
)
def test_a_file_that_changed_after_its_evaluation_is_refused_before_the_hub_is_asked(
    fake_hub: HubServer, release: list[PublishedFile], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / "name-Q4_K_M.gguf")
    words = refused(fake_hub, release)
    assert words.startswith("FileChanged: name-Q4_K_M.gguf ") and "Nothing was published" in words
    assert not fake_hub.requests


@pytest.mark.parametrize("size", [len(Q8), len(Q8) - 200_000, len(Q8) + 200_000])
def test_a_file_that_changes_while_it_is_sent_is_refused(
    fake_hub: HubServer, release: list[PublishedFile], tmp_path: Path, size: int
) -> None:
    def change() -> None:
        with (tmp_path / "name-Q8_0.gguf").open("r+b") as file:
            file.truncate(size)
            file.seek(size - 10)
            file.write(b"0123456789")

    fake_hub.add_repo(REPO, {"theirs.txt": b"stays"})
    fake_hub.uploads.hooks["upload"] = lambda: fake_hub.uploads.hooks.update(upload=change)  # in the plot; then, in Q4
    words = refused(fake_hub, release)
    assert words.startswith("FileChanged: name-Q8_0.gguf is not the file that was built and measured")
    assert content(fake_hub.repos[REPO]) == {"theirs.txt": b"stays"}


def test_a_part_that_is_sent_again_is_hashed_again(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.fail(fake_hub.uploads.path_of(Q8, 2), cut_after=300_000)
    send(fake_hub, release)
    assert len(puts(fake_hub, Q8)) == 4
    assert content(fake_hub.repos[REPO]) == whole(release)


def test_a_file_that_changes_between_two_sendings_of_a_part_is_refused(
    fake_hub: HubServer, release: list[PublishedFile], tmp_path: Path
) -> None:
    def change() -> None:
        with (tmp_path / "name-Q8_0.gguf").open("r+b") as file:
            file.seek(1_000_000)
            file.write(b"0123456789")

    fake_hub.fail(fake_hub.uploads.path_of(Q8, 2), cut_after=300_000)
    fake_hub.uploads.hooks["cut"] = change
    assert refused(fake_hub, release).startswith("FileChanged: name-Q8_0.gguf ")


@pytest.mark.parametrize("path", ["../evil", "a/../../b", ".git/config", "/etc/passwd", "./x"])
def test_a_path_that_leads_elsewhere_is_refused(fake_hub: HubServer, path: str) -> None:
    assert "A file on the Hub cannot be called" in refused(fake_hub, [made_release_file(path, b"x")])
    assert not fake_hub.requests


def test_two_files_of_one_name_and_no_file_at_all_are_refused(fake_hub: HubServer) -> None:
    assert "Two files are called a.txt" in refused(
        fake_hub, [made_release_file("a.txt", b"1"), made_release_file("a.txt", b"2")]
    )
    assert "nothing to publish" in refused(fake_hub, [])


def test_a_card_that_the_hub_does_not_understand_stops_before_anything_is_made(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    words = refused(fake_hub, [made_release_file("README.md", "---\nlicense: [1]\n---\n"), *release[1:]])
    assert words.startswith("UploadRefused") and '"license" must be a string' in words
    assert not fake_hub.repos


# ---- A Hub that fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    "path",
    [
        "/api/whoami-v2", "/api/repos/create", f"/api/models/{REPO}/preupload/main", BATCH, COMMIT,
        "/api/complete_multipart", f"/{REPO}.git/info/lfs/objects/verify", hashlib.sha256(Q4).hexdigest(),
    ],
)  # fmt: skip
def test_a_hub_that_fails_for_a_moment_is_asked_again(
    fake_hub: HubServer, release: list[PublishedFile], path: str, status: int
) -> None:
    fake_hub.fail(path if path.startswith("/") else f"/upload/{path}", status=status, times=2, retry_after=1)
    found = send(fake_hub, release)
    assert content(fake_hub.repos[REPO]) == whole(release)
    assert fake_hub.repos[REPO].commit == found.commit


@pytest.mark.parametrize("path", ["/api/repos/create", BATCH, COMMIT, f"/upload/{hashlib.sha256(Q4).hexdigest()}"])
def test_a_hub_that_keeps_failing_is_given_up_and_the_repo_is_as_it_was(
    fake_hub: HubServer, release: list[PublishedFile], path: str
) -> None:
    if path != "/api/repos/create":
        fake_hub.add_repo(REPO, {"theirs.txt": b"stays"})
    fake_hub.fail(path, status=503, times=None)
    words = refused(fake_hub, release)
    assert words.startswith("HubUnreachable") and "503" in words and "Type the same command again" in words
    assert len(calls(fake_hub, path)) <= 6
    assert [content(repo) for repo in fake_hub.repos.values()] in ([], [{"theirs.txt": b"stays"}])


def test_a_repo_that_was_made_and_not_filled_stays_and_is_spoken_of(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.fail(COMMIT, status=503, times=None)
    assert f"The repo {REPO} was created, and stays, empty and private." in refused(fake_hub, release)
    assert fake_hub.repos[REPO].private


@pytest.mark.parametrize("path", ["/api/whoami-v2", BATCH, COMMIT])
def test_a_wait_longer_than_anybody_watches_is_told_and_not_waited(
    fake_hub: HubServer, release: list[PublishedFile], path: str
) -> None:
    fake_hub.fail(path, status=429, times=None, retry_after=3600)
    words = refused(fake_hub, release)
    assert "wants fewer requests (answer 429), and to be asked again in 3600 s" in words
    assert len(calls(fake_hub, path)) == 1


@pytest.mark.parametrize(("status", "message", "kind", "said"), [
    (413, "Payload too large", UploadRefused, "too large"),
    (403, "Private repository storage limit reached, please upgrade your plan.", UploadRefused, "no room"),
    (402, "Payment required", UploadRefused, "no room"),
    (507, "Insufficient storage", UploadRefused, "no room"),
    (429, "You have exceeded your hourly quota of requests. Upgrade your plan", HubUnreachable, "fewer requests"),
    (429, "You may commit 128 times per hour. You can retry in about 1 hour", HubUnreachable, "128 times"),
    (503, "quota service is not available", HubUnreachable, "answers 503"),
    (403, "This resource group is closed", MayNotWrite, "This resource group is closed"),
    (404, "", RepoNotFound, "The Hub finds no"),
    (400, "Your push was \x1b[31mrejected\n because", UploadRefused, "Your push was [31mrejected because"),
])  # fmt: skip
@pytest.mark.parametrize("path", [BATCH, COMMIT])
def test_each_refusal_has_words_of_its_own(
    fake_hub: HubServer, release: list[PublishedFile], path: str, status: int, message: str,
    kind: type[QuantyardError], said: str,
) -> None:  # fmt: skip
    fake_hub.add_repo(REPO, {"theirs.txt": b"stays"})
    fake_hub.fail(path, status=status, said=message, times=None)
    with pytest.raises(kind) as caught:
        send(fake_hub, release)
    assert said in f"{caught.value.message}" and caught.value.hint
    assert "\x1b" not in caught.value.message
    assert content(fake_hub.repos[REPO]) == {"theirs.txt": b"stays"}


@pytest.mark.parametrize(("said", "kind", "words"), [
    ((413, "Your storage quota is exceeded"), "UploadRefused", "no room"),
    ((429, "You hit the hourly quota, retry later"), "HubUnreachable", "no more files"),
    ((429, "Too many requests"), "HubUnreachable", "no more files"),
])  # fmt: skip
def test_an_object_that_is_refused_for_now_is_not_one_without_room(
    fake_hub: HubServer, release: list[PublishedFile], said: tuple[int, str], kind: str, words: str
) -> None:
    fake_hub.uploads.refusals[hashlib.sha256(Q8).hexdigest()] = said
    told = refused(fake_hub, release)
    assert told.startswith(kind) and words in told and said[1] in told


@pytest.mark.parametrize(("status", "words"), [(413, "too large"), (429, "fewer requests"), (403, "has run out")])
def test_what_the_storage_refuses_is_told_by_its_status(
    fake_hub: HubServer, release: list[PublishedFile], status: int, words: str
) -> None:
    fake_hub.fail(fake_hub.uploads.path_of(Q4), status=status, times=None)
    assert words in refused(fake_hub, release)


@pytest.mark.parametrize("repo", ["o" * 42 + "/" + "n" * 96, "o" * 96 + "/n", "me/" + "n" * 94])
def test_a_repo_may_have_as_long_a_name_as_huggingface_hub_takes(repo: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    check_hub_target(HubTarget(repo))
    with pytest.raises(BadRequest, match="has 97 characters, and a name has 96 at most"):
        check_hub_target(HubTarget("me/" + "n" * 97))


def test_an_object_that_is_too_large_is_refused_in_the_hubs_words(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.uploads.refusals[hashlib.sha256(Q8).hexdigest()] = (422, "File exceeds the maximum size of 50 GB")
    words = refused(fake_hub, release)
    assert words.startswith("UploadRefused") and "maximum size of 50 GB" in words and "SPLIT_ABOVE" in words


def test_a_signed_address_that_has_run_out_is_no_question_of_rights(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.fail(fake_hub.uploads.path_of(Q4), status=403, times=None)
    assert "refuses name-Q4_K_M.gguf (answer 403): its signed address has run out" in refused(fake_hub, release)


def test_a_token_that_the_hub_repeats_is_not_repeated(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO)
    fake_hub.fail(COMMIT, status=400, error_message=f"bad token {fake_hub.writer}")
    assert "bad token (the token)" in refused(fake_hub, release)


@pytest.mark.parametrize("content_cut", [Q4, Q8[:0]])
def test_a_connection_cut_in_the_middle_of_an_upload_is_made_again(
    fake_hub: HubServer, release: list[PublishedFile], content_cut: bytes
) -> None:
    path = fake_hub.uploads.path_of(Q4) if content_cut else fake_hub.uploads.path_of(Q8, 3)
    fake_hub.fail(path, cut_after=150_000)
    send(fake_hub, release)
    assert [r.status for r in calls(fake_hub, path)] == [0, 200]
    assert content(fake_hub.repos[REPO]) == whole(release)


def test_a_connection_that_is_cut_again_and_again_is_said(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, {"theirs.txt": b"stays"})
    fake_hub.fail(fake_hub.uploads.path_of(Q4), cut_after=100_000, times=None)
    words = refused(fake_hub, release)
    assert words.startswith("HubUnreachable: The connection broke while name-Q4_K_M.gguf was sent, again and again.")
    assert len(puts(fake_hub, Q4)) == 6
    assert content(fake_hub.repos[REPO]) == {"theirs.txt": b"stays"}


@pytest.mark.usefixtures("fake_hub")
def test_a_closed_port_is_unreachable(release: list[PublishedFile]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        publish_to_hub(
            HubAccess(f"http://127.0.0.1:{port}", "hf_x"), TARGET, release, "m", lambda path, done, total: None
        )


def test_a_process_that_publishes_says_nothing_itself(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.fail(fake_hub.uploads.path_of(Q4), cut_after=100_000)
    code = f"""
from importlib.util import find_spec
from pathlib import Path
from quantyard.publish.hub.commit import HubTarget, publish_to_hub
from quantyard.hub.client import HubAccess
from quantyard.publish.files import kept_release_file, made_release_file
files = [
    kept_release_file("q4.gguf", Path({str(release[3].content)!r}), {release[3].sha256!r}),
    made_release_file("plot.png", {PLOT!r}),
]
files.append(made_release_file("README.md", "---\\n---\\n# A card that the Hub has doubts about"))
access = HubAccess({fake_hub.endpoint!r}, {fake_hub.writer!r})
for branch in ("v2", ""):  # the second time, every object is there
    publish_to_hub(access, HubTarget({REPO!r}, branch=branch), files, "m", lambda path, done, total: None)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")  # neither bars nor signed addresses
    assert len(puts(fake_hub, Q4)) == 2


# ---- A repo that moves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, 409])
def test_somebody_elses_commit_to_other_files_is_built_upon(
    fake_hub: HubServer, release: list[PublishedFile], status: int | None
) -> None:
    fake_hub.add_repo(REPO, {"README.md": b"old"})
    if status:
        fake_hub.fail(COMMIT, status=status)
    else:
        fake_hub.uploads.hooks["commit"] = lambda: push(fake_hub, "theirs.txt")
    send(fake_hub, release)
    theirs = {} if status else {"theirs.txt": b"theirs"}
    assert content(fake_hub.repos[REPO]) == theirs | whole(release)
    assert len(calls(fake_hub, COMMIT)) == 2


@pytest.mark.parametrize("path", ["README.md", "name-Q4_K_M.gguf"])
def test_somebody_elses_commit_to_our_files_is_not_overwritten(
    fake_hub: HubServer, release: list[PublishedFile], path: str
) -> None:
    fake_hub.add_repo(REPO, {"README.md": b"old"})
    fake_hub.uploads.hooks["commit"] = lambda: push(fake_hub, path)
    words = refused(fake_hub, release)
    assert words.startswith(f"RepoChanged: Somebody has changed {REPO} meanwhile: {path}. Nothing was published.")
    assert content(fake_hub.repos[REPO]) == {"README.md": b"old"} | {path: b"theirs"}


def test_a_repo_that_keeps_moving_is_given_up(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO)
    fake_hub.fail(COMMIT, status=412, times=None)
    assert refused(fake_hub, release).startswith("RepoChanged")
    assert len(calls(fake_hub, COMMIT)) == 2


@pytest.mark.parametrize("pull_request", [False, True])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    fake_hub: HubServer, release: list[PublishedFile], pull_request: bool
) -> None:
    def hang_up() -> None:
        raise ConnectionError

    fake_hub.add_repo(REPO)
    fake_hub.uploads.hooks["committed"] = hang_up
    found = send(fake_hub, release, HubTarget(REPO, pull_request=pull_request))
    repo = fake_hub.repos[REPO]
    head = repo.heads["refs/pr/1"] if pull_request else repo
    assert (found.commit, len(calls(fake_hub, COMMIT))) == (head.commit, 1)
    assert found.pull_request == (f"{fake_hub.endpoint}/{REPO}/discussions/1" if pull_request else "")


# ---- Before publishing -------------------------------------------------------------------------------------------


def test_a_preview_tells_what_would_change_and_writes_nothing(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    fake_hub.add_repo(REPO, {"README.md": b"old", "name-Q4_K_M.gguf": Q4, "NOTICE": b""})
    exists, changes = preview_hub_publication(access(fake_hub), TARGET, release)
    assert exists is True
    assert {c.path: c.state for c in changes} == {
        "README.md": "changed", "NOTICE": "unchanged", "plots/tradeoff.png": "new", "name-Q4_K_M.gguf": "unchanged",
        "name-Q8_0.gguf": "new",
    }  # fmt: skip
    assert {r.path.rsplit("/", 2)[1] for r in fake_hub.requests} == {"revision", "paths-info"}


def test_a_preview_of_a_new_branch_compares_with_main(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    fake_hub.add_repo(REPO, {"name-Q4_K_M.gguf": Q4})
    _, changes = preview_hub_publication(access(fake_hub), HubTarget(REPO, branch="v2"), release)
    assert "unchanged" in {c.state for c in changes}


def test_a_preview_of_a_missing_repo_finds_everything_new(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    exists, changes = preview_hub_publication(access(fake_hub), TARGET, release)
    assert (exists, {c.state for c in changes}) == (False, {"new"})
    assert not fake_hub.repos


def test_a_preview_without_a_token_cannot_tell_missing_from_private(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    exists, changes = preview_hub_publication(access(fake_hub, None), TARGET, release)
    assert (exists, {c.state for c in changes}) == (None, {"unknown"})


def test_a_preview_without_a_network_knows_nothing(release: list[PublishedFile], fake_hub: HubServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    exists, changes = preview_hub_publication(HubAccess(f"http://127.0.0.1:{port}", "hf_x"), TARGET, release)
    assert (exists, {c.state for c in changes}) == (None, {"unknown"})


def test_a_preview_says_so_when_the_token_is_not_accepted(fake_hub: HubServer, release: list[PublishedFile]) -> None:
    with pytest.raises(HubError, match="does not accept the token"):
        preview_hub_publication(access(fake_hub, "hf_wrong_0123"), TARGET, release)


def test_what_is_there_is_read_with_its_hashes_before_anything_is_sent(
    fake_hub: HubServer, release: list[PublishedFile]
) -> None:
    assert look_there(access(fake_hub), TARGET).exists is False
    assert look_there(access(fake_hub, None), TARGET).exists is None  # to a visitor, a private repo looks so too
    send(fake_hub, release)
    send(fake_hub, [made_release_file("README.md", "---\n---\nv2")], HubTarget(REPO, branch="v2"))
    found = look_there(access(fake_hub), TARGET)
    assert (found.exists, found.private, found.manifest) == (True, True, None)
    assert set(found.files) == {".gitattributes", *(file.path for file in release)}
    assert not any(found.replaced(file) for file in release)
    on_branch = look_there(access(fake_hub), HubTarget(REPO, branch="v2"))
    assert [file.path for file in release if on_branch.replaced(file)] == ["README.md"]
    assert not look_there(access(fake_hub), HubTarget(REPO, branch="v3")).has_branch


def test_a_manifest_that_is_larger_than_one_can_be_is_not_read(
    fake_hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(fake_hub, [made_release_file("manifest.json", "{}" + " " * 2000)])
    monkeypatch.setattr(there, "MAX_BYTES", 1000)
    fake_hub.requests.clear()
    assert look_there(access(fake_hub), TARGET).manifest is None
    assert not fake_hub.bodies("manifest.json")


def test_importing_the_module_does_not_import_huggingface_hub() -> None:
    code = "import sys, quantyard.publish.hub.commit; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
