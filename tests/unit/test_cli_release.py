"""The commands `report`, `gate`, `release` and `verify` in this process: their output, exit codes and order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantyard.cli.render.release import terminal_verify_checks
from quantyard.plan.api_tests import contract_step_label
from quantyard.protocol.base import ExitCode, Progress, StageResult
from quantyard.protocol.exit_codes import Answer
from quantyard.publish.progress import UploadProgress
from quantyard.publish.verify import ReleaseCheck
from quantyard.store.manifest import SCHEMA_VERSION
from tests.hub_server import HubServer
from tests.released import REPO, SUITE, Yard, lay_out
from tests.unit.fake_engine import FakeEngine, fails, keeps_contract, writes
from tests.unit.release_engine import engine_of

pytestmark = pytest.mark.commands


def shown(yard: Yard, command: str, *argv: str) -> tuple[int, str, str]:
    """A command that publishes nothing."""
    said = yard.run(command, f"--model={yard.model}", "--quant=Q8_0,Q4_K_M", *argv)
    return said.code, said.out, said.err


# ---- report ------------------------------------------------------------------------------------------


def test_report_writes_the_release_and_says_where_the_page_is(yard: Yard) -> None:
    code, out, err = shown(yard, "report")
    assert (code, out) == (0, f"{yard.release / 'report.html'}\n"), err
    assert {"README.md", "report.html", "manifest.json", "Lagoon-Q8_0.gguf", "LICENSE"} <= {
        path.name for path in yard.release.iterdir()
    }
    assert (yard.release / "Lagoon-Q8_0.gguf").samefile(yard.file("Q8_0"))
    assert not yard.hub.requests


def test_report_needs_neither_a_licence_nor_a_gate_that_opens(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = lay_out(tmp_path, hub, monkeypatch, readme="# no front matter\n", legal={})
    code, _, err = shown(yard, "report", yard.budgets("defaults: {max_mean_kld: 0.00001}\n"))
    assert code == 0, err
    assert "quality limits missed" in (yard.release / "README.md").read_text()
    assert yard.verify(f"--file={yard.release}").code == 0


def models_of(yard: Yard) -> set[str]:
    """The quants of the files in the folder `release`, and those that its manifest knows, which must be the same."""
    files = {path.stem.removeprefix("Lagoon-") for path in yard.release.glob("*.gguf")}
    assert set(json.loads((yard.release / "manifest.json").read_text())["quants"]) == files
    return files


def test_a_report_of_fewer_files_stays_about_those_in_the_folder_and_says_how_to_take_them_out(yard: Yard) -> None:
    shown(yard, "report")
    (yard.release / "notes.md").write_text("mine")
    said = yard.run("report", f"--model={yard.model}", "--quant=Q4_K_M")
    assert models_of(yard) == {"Q4_K_M", "Q8_0"} and (yard.release / "notes.md").read_text() == "mine"
    card = (yard.release / "README.md").read_text()
    assert "Q8_0" in card and "Q4_K_M" in card and yard.verify(f"--file={yard.release}").code == 0
    assert "is about Q8_0, Q4_K_M" in said.err and "QUANT=Q4_K_M ONLY=1" in said.err
    assert "ONLY" not in yard.run("report", f"--model={yard.model}", "--quant=Q4_K_M,Q8_0").err, "as asked for"

    assert yard.run("report", f"--model={yard.model}", "--quant=Q6_K").code == 0
    assert models_of(yard) == {"Q4_K_M", "Q6_K", "Q8_0"}
    assert yard.run("report", f"--model={yard.model}", "--quant=Q4_K_M", "--only").code == 0
    assert models_of(yard) == {"Q4_K_M"} and yard.file("Q8_0").is_file() and not (yard.release / "notes.md").exists()


def test_a_file_that_cannot_stand_in_the_report_stays_beside_it_and_is_named(yard: Yard) -> None:
    shown(yard, "report")
    yard.file("Q8_0").unlink()
    yard.file("Q8_0").write_bytes(b"GGUF, but another")
    said = yard.run("report", f"--model={yard.model}", "--quant=Q4_K_M")
    assert said.code == 0 and "is about Q4_K_M; beside it, and not described there: Lagoon-Q8_0.gguf." in said.err
    assert (yard.release / "Lagoon-Q8_0.gguf").is_file() and "Q8_0" not in (yard.release / "README.md").read_text()
    assert yard.verify(f"--file={yard.release}").code == 0


def test_publishing_fewer_files_sends_those_alone_and_takes_none_out_of_the_folder(yard: Yard) -> None:
    shown(yard, "report")
    said = yard.publish(quants="Q4_K_M")
    assert said.code == 0, said.err
    assert {name for name in yard.published() if name.endswith(".gguf")} == {"Lagoon-Q4_K_M.gguf"}
    assert (yard.release / "Lagoon-Q8_0.gguf").is_file() and "not described there: Lagoon-Q8_0.gguf" in said.err


def test_without_quant_the_report_and_the_gate_are_about_every_file_that_was_built(yard: Yard) -> None:
    shown(yard, "report")
    assert yard.run("report", f"--model={yard.model}").code == 0
    built = set(yard.manifest().quants)
    assert {path.name for path in yard.release.glob("*.gguf")} == {f"Lagoon-{quant}.gguf" for quant in built}
    told = yard.run("gate", f"--model={yard.model}", "--json").json
    assert {result["quant"] for result in told["gate"]["results"]} == built


# ---- gate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budgets", "code", "mark"), [
    ("defaults: {max_mean_kld: 5}\n", 0, "passed"),
    ("defaults: {max_mean_kld: 0.00001}\n", 40, "FAIL"),
    ("quants: {Q8_0: {max_mean_kld: 0.0012}}\n", 41, "few"),
    ("defaults: {max_accuracy_loss: {nobody_asked: 5}}\n", 42, "none"),
])  # fmt: skip
def test_gate_prints_every_budget_and_ends_with_the_code_of_its_outcome(
    yard: Yard, budgets: str, code: int, mark: str
) -> None:
    ended, out, _ = shown(yard, "gate", yard.budgets(budgets))
    assert ended == code and mark in out and "budgets: gate.yaml, suite standard" in out
    assert not yard.hub.requests and not yard.release.exists()
    kept = yard.manifest().gate
    assert kept is not None and all(result.finding in out for result in kept.results)


def test_gate_as_json_is_the_same_verdict(yard: Yard) -> None:
    code, out, _ = shown(yard, "gate", yard.budgets("defaults: {max_mean_kld: 0.00001}\n"), "--json")
    told = json.loads(out)
    assert (code, told["gate"]["outcome"], told["files"], told["hub"]) == (40, "failed", [], None)
    assert {result["quant"] for result in told["gate"]["results"]} == {"Q8_0", "Q4_K_M"}


def test_a_gate_file_that_is_none_is_refused(yard: Yard) -> None:
    code, _, err = shown(yard, "gate", yard.budgets("defaults: {max_mean_kdl: 5}\n"))
    assert code == 2 and "max_mean_kdl" in err


def test_a_suite_of_the_users_own_is_found_by_its_file(yard: Yard) -> None:
    mine = yard.root / "mine.yaml"
    mine.write_text(f"name: {SUITE}\ntasks: [arc_easy]\n")
    code, out, err = shown(yard, "gate", f"--suite={mine}", yard.budgets("defaults: {max_mean_kld: 5}\n"))
    assert code == 0, err
    assert f"suite {SUITE}" in out


# ---- release, on the fake engine ---------------------------------------------------------------------


@pytest.fixture
def engine(yard: Yard) -> FakeEngine:
    return engine_of(yard)


def test_release_builds_measures_tests_judges_and_publishes(yard: Yard, engine: FakeEngine) -> None:
    said = yard.publish("--suite=smoke", command="release")
    assert said.code == 0, said.err
    assert {"convert", "quantize Q8_0", "verify Q4_K_M", "report", contract_step_label("Q8_0")} <= set(engine.ran)
    assert {"Lagoon-Q8_0.gguf", "Lagoon-Q4_K_M.gguf", "README.md", "eval/smoke/report.md"} <= set(yard.published())
    assert yard.verify(f"--repo={REPO}").code == 0
    engine.ran.clear()
    before = yard.repo.commit
    assert yard.publish("--suite=smoke", command="release").code == 0
    assert (engine.ran, yard.repo.commit) == ([], before)


def test_a_model_that_kept_every_promise_of_the_contract_is_published(yard: Yard, engine: FakeEngine) -> None:
    engine.behaviours |= dict.fromkeys((contract_step_label("Q8_0"), contract_step_label("Q4_K_M")), keeps_contract())
    assert yard.publish("--suite=smoke", command="release").code == 0


def test_release_publishes_the_suite_that_it_measured_when_its_name_says_what_was_changed(
    yard: Yard, engine: FakeEngine
) -> None:
    said = yard.publish("--suite=smoke", "--limit=5", command="release")
    assert said.code == 0, said.err
    assert set(json.loads(yard.published()["manifest.json"])["evaluations"]) == {"smoke+limit-5"}


def test_release_uploads_nothing_where_the_gate_says_no(yard: Yard, engine: FakeEngine) -> None:
    said = yard.publish("--suite=smoke", command="release", gate="defaults: {max_mean_kld: 0.00001}\n")
    assert said.code == 40 and "report" in engine.ran
    assert not yard.written() and not yard.hub.repos


@pytest.mark.parametrize("argv", [("--repo=",), ("--repo=no name",), ("--gate=nowhere",), ("--license=mit",)])
def test_release_refuses_what_cannot_be_before_it_builds_anything(
    yard: Yard, engine: FakeEngine, argv: tuple[str, ...]
) -> None:
    assert yard.publish("--suite=smoke", *argv, command="release").code == 2
    assert engine.ran == [] and engine.prepared == []


def test_a_stage_that_fails_ends_the_release_with_nothing_sent(yard: Yard, engine: FakeEngine) -> None:
    engine.behaviours["verify Q4_K_M"] = fails(ExitCode.UNSUPPORTED_MODEL)
    said = yard.publish("--suite=smoke", command="release")
    assert said.code == 3 and not yard.written()


def test_a_build_over_a_manifest_that_cannot_be_read_keeps_it_aside(yard: Yard, engine: FakeEngine) -> None:
    (yard.folder / "manifest.json").write_text('{"hours of measuring": ')
    assert yard.publish("--suite=smoke", command="release").code == 0
    (aside,) = yard.folder.glob("manifest.unreadable-*.json")
    assert aside.read_text() == '{"hours of measuring": '


def test_a_build_over_a_newer_manifest_is_refused_and_leaves_it(yard: Yard, engine: FakeEngine) -> None:
    newer = json.dumps({"schema_version": SCHEMA_VERSION + 1, "quantyard": "9.0"})
    (yard.folder / "manifest.json").write_text(newer)
    said = yard.publish("--suite=smoke", command="release")
    assert said.code == 2 and "git pull" in said.err
    assert (yard.folder / "manifest.json").read_text() == newer


def test_a_rebuild_of_what_was_released_gives_the_same_bytes(yard: Yard, engine: FakeEngine) -> None:
    assert yard.publish("--suite=smoke", command="release").code == 0
    engine.ran.clear()
    said = yard.verify(f"--file={yard.release}", "--rebuild", f"--model={yard.model}")
    assert said.code == 0, said.out
    assert said.out.count("the same bytes") == 2 and "quantize Q8_0" in engine.ran
    assert not list(yard.artifacts.glob(".rebuild-*"))


def test_a_rebuild_that_gives_other_bytes_fails(yard: Yard, engine: FakeEngine) -> None:
    assert yard.publish("--suite=smoke", command="release").code == 0
    engine.behaviours["quantize Q8_0"] = writes("model.gguf")
    said = yard.verify(f"--file={yard.release}", "--rebuild", f"--model={yard.model}")
    assert said.code == Answer.VERIFY_FAILED
    assert "other bytes" in said.out and "by the same means" in said.out and said.out.count("the same bytes") == 1


# ---- words -------------------------------------------------------------------------------------------


def test_the_verdict_of_verify_counts_what_failed_and_what_was_left_open() -> None:
    good, open_, bad = (
        ReleaseCheck("a", "ok", "fine"),
        ReleaseCheck("b", "not checked", "no"),
        ReleaseCheck("c", "failed", "[red]"),
    )
    assert terminal_verify_checks([good, open_]).endswith("; 1 could not be run here.")
    assert "1 of 3 checks failed" in terminal_verify_checks([good, open_, bad])
    assert r"\[red]" in terminal_verify_checks([bad])


class _Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, label: str, number: int, of: int) -> None:
        self.lines.append(f"begin {label} {number}/{of}")

    def progress(self, label: str, progress: Progress) -> None:
        self.lines.append(f"{progress.done}/{progress.total} {progress.unit}")

    def end(self, label: str, result: StageResult) -> None:
        self.lines.append(f"end {label} {result.outputs[0].size_bytes}")

    def fail(self, label: str, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_an_upload_is_shown_as_a_step_for_each_large_file_and_ends_once() -> None:
    told, mib = _Told(), 2**20
    progress = UploadProgress(told, 2)
    for path, done in (("a", 5), ("a", 3), ("a", mib), ("a", mib), ("b", mib)):
        progress(path, done, mib)
    progress("plot.png", 10, 10)
    assert told.lines == [
        "begin a 1/2", f"5/{mib} bytes", f"3/{mib} bytes", f"{mib}/{mib} bytes", f"end a {mib}",
        "begin b 2/2", f"{mib}/{mib} bytes", f"end b {mib}",
    ]  # fmt: skip
