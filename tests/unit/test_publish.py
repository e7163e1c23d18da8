"""`make publish` from a real store to a real Hub server: what is sent, what is refused, and what the gate decides."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from quantyard.cli import release as commands
from quantyard.protocol.runner import file_sha256
from quantyard.store.manifest import SCHEMA_VERSION
from tests.hub_repo import Blob
from tests.hub_server import HubServer
from tests.released import LEGAL, PASSES, PLOTS, README, REPO, SUITE, TASKS, Yard, lay_out
from tests.unit.release_engine import engine_of

pytestmark = pytest.mark.commands

COMPOSED = {
    "Lagoon-Q8_0.gguf", "Lagoon-Q4_K_M.gguf", *LEGAL, "README.md", "manifest.json", "report.html",
    "Modelfile", "model.yaml",
    f"eval/{SUITE}/report.md", *(f"eval/{SUITE}/plots/{name}" for name in PLOTS),
    *(f".eval_results/winogrande-{label}.yaml" for label in ("Q8_0", "Q4_K_M")),
    *(f"eval/{SUITE}/lm-eval/{label}/{task}.json" for label in ("BF16", "Q8_0", "Q4_K_M") for task in TASKS),
}  # fmt: skip
FAILS = "defaults: {max_mean_kld: 0.00001}\n"
UNDECIDED = "defaults: {max_mean_kld: 5}\nquants: {Q8_0: {max_mean_kld: 0.0012}}\n"
UNMEASURED = "defaults: {max_mean_kld: 5, max_accuracy_loss: {nobody_asked: 5}}\n"


# ---- what is sent ------------------------------------------------------------------------------------


def test_a_release_is_one_commit_of_exactly_the_composed_files(yard: Yard) -> None:
    said = yard.publish()
    assert said.code == 0, said.err
    assert set(yard.published()) == COMPOSED
    assert len(list(yard.repo.snapshots())) == 2  # the one the Hub makes, and ours
    assert "21 of 21 files sent" in said.out and "read back" in said.out


def test_every_file_on_the_hub_has_the_bytes_of_the_folder_release(yard: Yard) -> None:
    assert yard.publish().code == 0
    local = {path.relative_to(yard.release).as_posix(): file_sha256(path) for path in yard.release.rglob("*")
             if path.is_file()}  # fmt: skip
    assert {name: hashlib.sha256(content).hexdigest() for name, content in yard.published().items()} == local
    assert local["Lagoon-Q8_0.gguf"] == yard.manifest().quants["Q8_0"].sha256


def test_no_question_of_a_data_set_is_published(yard: Yard) -> None:
    yard.publish()
    assert not [name for name, content in yard.published().items() if b"a question of somebody" in content]


def test_a_quant_that_was_published_before_is_not_lost_to_the_card(yard: Yard) -> None:
    assert yard.publish().code == 0
    before = yard.repo.commit
    for argv in ((), ("--dry-run",)):
        said = yard.publish(*argv, quants="Q8_0")
        assert (said.code, yard.repo.commit) == (2, before)
        assert f"{REPO} also holds Q4_K_M," in said.err and "QUANT=Q4_K_M,Q8_0" in said.err
    del yard.repo.files["Lagoon-Q4_K_M.gguf"]  # by its owner
    assert yard.publish(quants="Q8_0").code == 0


def test_publishing_the_same_again_sends_nothing(yard: Yard) -> None:
    yard.publish()
    before = yard.repo.commit
    yard.hub.requests.clear()
    said = yard.publish()
    assert (said.code, yard.repo.commit) == (0, before)
    assert "nothing to send: it has every file" in said.out
    assert not [r for r in yard.hub.requests if r.method == "PUT" or "/commit/" in r.path]


def test_what_others_put_into_the_repo_stays(yard: Yard) -> None:
    yard.publish()
    yard.hub.repos[REPO] = yard.repo.after({"theirs.txt": Blob(b"stays", lfs=False)})
    assert yard.publish("--suite=standard", gate=FAILS.replace("0.00001", "6")).code == 0
    assert set(yard.published()) == {*COMPOSED, "theirs.txt"}


@pytest.mark.parametrize(("argv", "private"), [((), True), (("--public",), False)])
def test_a_repo_is_private_unless_asked_otherwise(yard: Yard, argv: tuple[str, ...], private: bool) -> None:
    assert yard.publish(*argv).code == 0
    assert yard.repo.private is private


def test_a_branch_leaves_main_as_it_was(yard: Yard) -> None:
    assert yard.publish("--hub-branch=v2").code == 0
    assert set(yard.published("v2")) == COMPOSED and not yard.published()


def test_a_pull_request_leaves_main_as_it_was_and_says_where_it_is(yard: Yard) -> None:
    yard.hub.add_repo(REPO, {"README.md": b"old"})
    said = yard.publish("--hub-pr")
    assert said.code == 0, said.err
    assert yard.published() == {"README.md": b"old"}
    assert set(yard.published("refs/pr/1")) == COMPOSED
    assert f"{REPO}/discussions/1" in said.out


def test_json_is_one_object_about_gate_files_and_commit(yard: Yard) -> None:
    told = yard.publish("--json").json
    assert told["gate"]["outcome"] == "passed"
    assert {entry["path"]: entry["state"] for entry in told["files"]} == dict.fromkeys(COMPOSED, "new")
    assert (told["hub"]["commit"], told["hub"]["created"], told["oci"]) == (yard.repo.commit, True, [])


def test_a_model_whose_source_is_gated_is_published_gated(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = lay_out(tmp_path, hub, monkeypatch, on_hub=True, gated="auto")
    assert "gated (auto) as its source" in yard.publish("--dry-run").out
    assert yard.publish().code == 0
    assert yard.repo.gated == "auto"
    assert {name: yard.published()[name].decode() for name in LEGAL} == LEGAL


def test_a_card_that_asks_for_terms_to_be_accepted_counts_as_gated(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = README.replace("tags:", "extra_gated_prompt: Agree\ntags:")
    yard = lay_out(tmp_path, hub, monkeypatch, readme=readme)
    assert yard.publish().code == 0
    assert yard.repo.gated == "auto"


# ---- a dry run ---------------------------------------------------------------------------------------


def test_a_dry_run_names_repo_branch_and_every_file_and_sends_nothing(yard: Yard) -> None:
    said = yard.publish("--dry-run", "--hub-branch=v2")
    assert said.code == 0
    assert f"{yard.hub.endpoint}/{REPO} (new, private), one commit on v2" in said.out
    assert all(f"  {name}\n" in said.out and "new " in said.out for name in COMPOSED)
    assert "Nothing was sent" in said.out
    assert not yard.written() and not yard.hub.repos


def test_a_dry_run_tells_what_is_there_already(yard: Yard) -> None:
    yard.publish()
    yard.hub.repos[REPO] = yard.repo.after({"LICENSE": Blob(b"another", lfs=False)})
    yard.hub.requests.clear()
    told = yard.publish("--dry-run", "--json").json
    changes = {entry["path"]: entry["state"] for entry in told["files"]}
    assert changes == dict.fromkeys(COMPOSED, "unchanged") | {"LICENSE": "changed"}
    assert told["hub"] is None and not yard.written()


def test_a_dry_run_needs_no_token_and_no_hub(yard: Yard) -> None:
    yard.monkeypatch.delenv("HF_TOKEN")
    said = yard.publish("--dry-run", "--hf-endpoint=http://127.0.0.1:9")
    assert said.code == 0
    assert "the Hub was not asked" in said.out and "unknown" in said.out


def test_a_dry_run_to_a_registry_tells_tag_and_digest_of_each_file(yard: Yard) -> None:
    said = yard.publish("--dry-run", "--repo=", "--oci=registry.invalid/team/lagoon", "--json")
    assert said.code == 0, said.err
    told = said.json["oci"]
    assert [entry["reference"] for entry in told] == [
        "registry.invalid/team/lagoon:Q8_0", "registry.invalid/team/lagoon:Q4_K_M",
    ]  # fmt: skip
    assert len({entry["digest"] for entry in told}) == 2 and not any(entry["signed"] for entry in told)
    assert not yard.hub.requests
    tagged = yard.publish("--dry-run", "--repo=", "--oci=registry.invalid/lagoon:mine", quants="Q8_0")
    assert "registry.invalid/lagoon:mine" in tagged.out


@pytest.mark.parametrize(
    ("budgets", "outcome"), [(FAILS, "failed"), (UNDECIDED, "too few questions"), (UNMEASURED, "not measured")]
)
def test_a_dry_run_succeeds_and_tells_the_outcome_of_the_gate(yard: Yard, budgets: str, outcome: str) -> None:
    said = yard.publish("--dry-run", gate=budgets)
    assert said.code == 0, said.err
    assert "Lagoon-Q8_0.gguf" in said.out and "Gate" in said.out and "Nothing was sent" in said.out
    assert yard.publish("--dry-run", "--json", gate=budgets).json["gate"]["outcome"] == outcome
    assert not yard.written()


# ---- one explicit yes --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["publish", "release"])
def test_without_a_yes_and_without_a_terminal_nothing_is_published(yard: Yard, command: str) -> None:
    said = yard.run(command, f"--model={yard.model}", "--quant=Q8_0", f"--repo={REPO}", yard.budgets(PASSES))
    assert said.code == 2 and "Publishing needs a yes, and there is no terminal to ask on." in said.err
    assert "YES=1" in said.err and "DRY_RUN=1" in said.err and not yard.hub.requests


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("y\n", 0), ("\n", 2), ("no\n", 2), ("", 2)])
def test_on_a_terminal_it_is_shown_what_would_go_where_and_asked(
    yard: Yard, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, answer)
    said = yard.run("publish", f"--model={yard.model}", "--quant=Q8_0", f"--repo={REPO}", yard.budgets(PASSES))
    assert said.code == code, said.err
    assert REPO in said.err and "Lagoon-Q8_0.gguf" in said.err and "Publish this?" in said.err
    assert bool(yard.written()) == (code == 0)


def test_a_release_asks_before_anything_runs(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(yard)
    _answer(monkeypatch, "no\n")
    said = yard.run("release", f"--model={yard.model}", "--quant=Q8_0", f"--repo={REPO}", "--suite=smoke")
    assert said.code == 2 and REPO in said.err and "Publish this?" in said.err
    assert engine.ran == [] and not yard.written()


def _answer(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A terminal with someone who answers."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    monkeypatch.setattr(commands, "_can_terminal_ask", lambda: True)


# ---- refused before anything -------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["publish", "release"])
def test_no_token_is_found_out_before_anything_else(yard: Yard, command: str) -> None:
    yard.monkeypatch.delenv("HF_TOKEN")
    said = yard.publish(command=command)
    assert said.code == 2
    assert "No token is set" in said.err and "hf auth login" in said.err
    assert not yard.hub.requests and not yard.release.exists()


def test_a_token_that_may_only_read_publishes_nothing(yard: Yard) -> None:
    yard.monkeypatch.setenv("HF_TOKEN", yard.hub.token)
    said = yard.publish()
    assert said.code == 4 and "may only read" in said.err and yard.hub.token not in said.err
    assert not yard.hub.repos


def test_somebody_elses_repo_is_not_written_to(yard: Yard) -> None:
    yard.hub.add_repo("stranger/model", {"README.md": b"theirs"})
    assert yard.publish("--repo=stranger/model").code == 2  # would replace their card
    assert yard.publish("--repo=stranger/model", "--agree=card").code == 4
    assert list(yard.hub.repos["stranger/model"].files) == ["README.md"]


@pytest.mark.parametrize(("argv", "says"), [
    (("--repo=",), "REPO is not given"),
    (("--repo=no name",), "REPO is not the name of a repo"),
    (("--repo=me/name@v2",), "names a revision"),
    (("--hub-branch=v2", "--hub-pr"), "HUB_BRANCH and HUB_PR are both given"),
    (("--oci=registry.example/team/lagoon:latest",), "is one tag, for 2 files"),
    (("--gate=nowhere.yaml",), "GATE=nowhere.yaml cannot be read"),
    (("--split-above=much",), "SPLIT_ABOVE=much is not a size"),
    (("--cosign-key=nowhere.key",), "COSIGN_KEY=nowhere.key cannot be read"),
    (("--quant=Q3_K_M",), "Q3_K_M is not built"),
    (("--suite=full",), "Nothing was measured with the suite full; measured: standard"),
])  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_is_sent(yard: Yard, argv: tuple[str, ...], says: str) -> None:
    said = yard.publish(*argv)
    assert said.code == 2
    assert says in said.err
    assert not yard.hub.requests


def test_a_model_that_was_never_built_is_refused(yard: Yard) -> None:
    (yard.folder / "manifest.json").unlink()
    said = yard.publish()
    assert said.code == 2 and "Nothing is built in" in said.err and "make release" in said.err


def test_a_file_changed_after_its_evaluation_is_refused_with_both_hashes(yard: Yard) -> None:
    path = yard.file("Q4_K_M")
    recorded, content = yard.manifest().quants["Q4_K_M"].sha256, bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = yard.publish()
    assert said.code == 2
    assert recorded in said.err and file_sha256(path) in said.err
    assert not yard.hub.requests and not yard.release.exists()


def test_a_file_that_is_gone_is_refused(yard: Yard) -> None:
    yard.file("Q8_0").unlink()
    said = yard.publish()
    assert said.code == 2 and f"{yard.file('Q8_0')} is gone" in said.err


def test_a_manifest_of_a_newer_version_is_refused_and_left_as_it_is(yard: Yard) -> None:
    path = yard.folder / "manifest.json"
    newer = json.loads(path.read_bytes()) | {"schema_version": SCHEMA_VERSION + 1, "quantyard": "9.0", "more": 1}
    path.write_text(json.dumps(newer))
    said = yard.publish()
    assert said.code == 2
    assert f"version {SCHEMA_VERSION + 1}, by Quantyard 9.0" in said.err and "git pull" in said.err
    assert json.loads(path.read_bytes()) == newer and not yard.hub.requests


def test_what_was_not_measured_is_refused(yard: Yard) -> None:
    yard.keep(yard.manifest().model_copy(update={"evaluations": {}}))
    said = yard.publish()
    assert said.code == 2 and "nothing was measured" in said.err and "make eval" in said.err


def test_an_evaluation_without_one_of_the_files_is_refused(yard: Yard) -> None:
    manifest = yard.manifest()
    report = manifest.evaluations[SUITE]
    left = tuple(m for m in report.measurements if m.file.label != "Q4_K_M")
    manifest.evaluations[SUITE] = report.model_copy(update={"measurements": left})
    yard.keep(manifest)
    assert "it lacks Q4_K_M" in yard.publish().err
    assert yard.publish(quants="Q8_0").code == 0


def test_an_evaluation_of_another_file_is_refused_with_both_hashes(yard: Yard) -> None:
    manifest = yard.manifest()
    yard.file("Q8_0").write_bytes(yard.file("Q6_K").read_bytes())
    now = file_sha256(yard.file("Q8_0"))
    measured = manifest.quants["Q8_0"].sha256
    manifest.quants["Q8_0"] = manifest.quants["Q8_0"].model_copy(update={"sha256": now})
    yard.keep(manifest)
    said = yard.publish()
    assert said.code == 2
    assert f"measured as another file, SHA-256 {measured}, now {now}" in said.err and not yard.hub.requests


@pytest.mark.parametrize(("licence", "says", "stated"), [
    ("", "names no licence", "apache-2.0"),
    ("license: other\n", "is not a licence identifier", "mit"),
    ("license: acme-1.0\n", "not one that Quantyard knows", "acme-1.0"),
    ("license: cc-by-nd-4.0\n", "forbids sharing", "cc-by-nd-4.0"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["publish", "release"])
def test_a_licence_that_does_not_allow_it_stops_until_the_user_states_it(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch,
    licence: str, says: str, stated: str, command: str,
) -> None:  # fmt: skip
    yard = lay_out(tmp_path, hub, monkeypatch, readme=f"---\nlanguage: en\n{licence}---\n")
    said = yard.publish(command=command)
    assert said.code == 2
    assert says in said.err and "LICENSE=" in said.err
    assert not yard.hub.requests
    if command == "publish":
        assert yard.publish(f"--license={stated}").code == 0
        assert json.loads(yard.published()["manifest.json"])["stated_license"] == stated
        assert yard.verify(f"--file={yard.release}").code == 0


def test_a_licence_that_contradicts_the_source_is_refused(yard: Yard) -> None:
    said = yard.publish("--license=mit")
    assert said.code == 2 and "The source's licence is apache-2.0, and LICENSE says mit" in said.err


# ---- the gate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budgets", "code", "says"), [
    (FAILS, 40, "is exceeded"), (UNDECIDED, 41, "has too few questions to tell"), (UNMEASURED, 42, "was not measured"),
])  # fmt: skip
def test_a_gate_that_says_no_uploads_nothing(yard: Yard, budgets: str, code: int, says: str) -> None:
    said = yard.publish(gate=budgets)
    assert said.code == code
    assert says in said.err and "gate.yaml" in said.err and "ALLOW_FAIL=1" in said.err
    assert not yard.hub.requests


@pytest.mark.parametrize(("budgets", "outcome"), [
    (FAILS, "failed"), (UNDECIDED, "too few questions"), (UNMEASURED, "not measured"),
])  # fmt: skip
def test_the_store_remembers_what_the_gate_found_though_nothing_was_published(
    yard: Yard, budgets: str, outcome: str
) -> None:
    yard.publish(gate=budgets)
    gate = yard.manifest().gate
    assert gate is not None and (gate.outcome, gate.budgets) == (outcome, "gate.yaml")
    assert set(yard.manifest().quants) == {"Q8_0", "Q6_K", "Q4_K_M"}  # and forgets nothing else
    assert yard.publish().code == 0
    kept = yard.manifest().gate
    assert kept is not None and kept.outcome == "passed"


def test_what_failed_can_be_published_with_the_failure_on_its_card(yard: Yard) -> None:
    said = yard.publish("--allow-fail", gate=FAILS)
    assert said.code == 0
    card = yard.published()["README.md"].decode()
    assert "quality limits missed" in card
    gate = json.loads(yard.published()["manifest.json"])["gate"]
    assert {result["outcome"] for result in gate["results"]} == {"failed"}
    yard.publish()
    assert "quality limits missed" not in yard.published()["README.md"].decode()


def test_without_budgets_of_the_users_own_ours_hold(yard: Yard) -> None:
    yard.publish("--gate=")
    gate = yard.manifest().gate
    assert gate is not None and {"max_ppl_change", "max_mean_kld"} <= {result.budget for result in gate.results}


# ---- hostile words -----------------------------------------------------------------------------------

HOSTILE = [
    "'a\\nlicense: mit\\n---\\n# Owned'", '"x\\n---\\n<script>alert(1)</script>"', "'{{ 7 * 191 }}{% raw %}'",
    "'<img src=x onerror=alert(1)>'",
]  # fmt: skip


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_of_a_source_become_no_markup(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    readme = f"---\nlicense: other\nlicense_name: {words}\ntags: [{words}]\nlanguage: [{words}]\n---\n{words}\n"
    name = "La<b>goon {{ 7 * 191 }} --- license: mit"
    yard = lay_out(tmp_path, hub, monkeypatch, readme=readme, name=name, legal={"LICENSE": f"``` {words}"})
    assert "is not a licence identifier" in (said := yard.publish("--license=<b>").err) and "<b>" in said
    assert yard.publish("--license=apache-2.0").code == 0
    files = {name: content.decode() for name, content in yard.published().items() if name.endswith((".md", ".html"))}
    head = yaml.safe_load(files["README.md"].split("\n---\n", maxsplit=1)[0].removeprefix("---\n"))
    assert (head["license"], head["library_name"]) == ("apache-2.0", "gguf")
    body = files["README.md"] + files["report.html"]
    assert "1337" not in body and "# Owned\n" not in files["README.md"]
    assert "<script>alert" not in files["report.html"] and "<img src=x" not in files["report.html"]
    assert yard.verify(f"--file={yard.release}").code == 0
