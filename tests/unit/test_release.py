"""What is published of a model: a manifest of these files alone, without this machine, and the folder `release`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR, default_data_path
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.protocol.builder import SplitRequest
from quantyard.protocol.evaluation import Suite, TaskEntry
from quantyard.protocol.runner import file_sha256
from quantyard.publish.files import made_release_file
from quantyard.publish.folder import write_release
from quantyard.publish.release import Release, find_release, release_manifest, release_report_files
from quantyard.store.artifact import Workspace
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import Manifest, StageRecord, parse_manifest
from quantyard.store.visible_files import set_file_aside
from quantyard.workflows import planning
from tests.hub_server import HubServer
from tests.released import REPO, SUITE, TASKS, Yard, lay_out, tiny
from tests.unit.fake_engine import FakeEngine, writes


@pytest.fixture
def yard(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Yard:
    return lay_out(tmp_path / 'jürgens "yard"', hub, monkeypatch)


def found(yard: Yard, *quants: str, suite: str = "") -> Release:
    """What `publish` finds in the store."""
    local = yard.source.local
    assert local is not None
    return find_release(
        yard.folder, local.folder, quants or ("Q8_0", "Q4_K_M"), suite, HashCache(yard.artifacts / ".h.json")
    )


# ---- the manifest ------------------------------------------------------------------------------------


def test_the_published_manifest_knows_the_published_files_only(yard: Yard) -> None:
    manifest = release_manifest(found(yard, "Q4_K_M"), {})
    assert set(manifest.quants) == set(manifest.contracts) == {"Q4_K_M"}
    assert [m.file.label for m in manifest.evaluations[SUITE].measurements] == ["BF16", "Q4_K_M"]
    words = {word for label in manifest.stages for word in label.split()}
    assert {"convert", "report", "BF16", "Q4_K_M"} <= words
    assert not {"Q8_0", "Q6_K"} & words


def test_the_stages_of_a_file_that_never_passed_are_not_published(yard: Yard) -> None:
    manifest = yard.manifest()
    manifest.stages["quantize Q2_K"] = manifest.stages["quantize Q8_0"]
    yard.keep(manifest)
    assert "quantize Q2_K" not in release_manifest(found(yard), {}).stages


def test_nothing_published_names_a_folder_of_this_machine(yard: Yard) -> None:
    assert yard.publish().code == 0
    here = (yard.root.name, str(yard.root.parent), str(Path.home()) + "/", str(REPO_DIR))
    assert any(name in yard.manifest().model_dump_json() for name in here[1:])
    told = {name: content.decode(errors="replace") for name, content in yard.published().items()}
    assert [(name, word) for name, text in told.items() for word in here if word in text] == []
    manifest = parse_manifest(told["manifest.json"].encode(), "")
    assert manifest.source.title == "Lagoon"
    assert manifest.stages["convert"].argv[0][1:] == [
        "Lagoon/config.json", "artifacts/stages/x", "store/y", "~/tools", "quantyard/builder", "Lagoon", "artifacts",
        "quantyard", "--from=Lagoon",
    ]  # fmt: skip


def test_an_address_that_only_looks_like_a_folder_of_this_machine_stays(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = yard.manifest()
    links = ["https://l.example/root/x", "https://l.example//y", f"{REPO_DIR}2", "/rooted", f"file://{REPO_DIR}/z"]
    manifest.stages["convert"] = manifest.stages["convert"].model_copy(update={"argv": [links]})
    yard.keep(manifest)
    for home in ("/root", "/"):
        monkeypatch.setenv("HOME", home)
        kept = release_manifest(found(yard), {}).stages["convert"].argv[0]
        assert kept[:4] == links[:4]
        assert kept[4] == "file://quantyard/z"


def test_a_store_behind_a_link_is_not_named_by_its_real_path_either(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(yard.root)
    manifest = yard.manifest()
    argv = [[str(yard.folder.resolve() / "x"), str(tmp_path / "link" / "artifacts" / "y")]]
    manifest.stages["convert"] = manifest.stages["convert"].model_copy(update={"argv": argv})
    yard.keep(manifest)
    folder = tmp_path / "link" / "artifacts" / yard.source.model.folder
    release = find_release(folder, None, ["Q8_0"], "", HashCache(tmp_path / ".h.json"))
    assert release_manifest(release, {}).stages["convert"].argv == [["artifacts/x", "store/y"]]


def test_the_path_of_a_local_source_is_not_its_title(yard: Yard) -> None:
    assert release_manifest(found(yard), {}).source.title == "Lagoon"


def test_parts_are_in_the_published_manifest_beside_the_hash_of_the_whole(yard: Yard) -> None:
    parts = (made_release_file("a-00001-of-00002.gguf", b"1"), made_release_file("a-00002-of-00002.gguf", b"22"))
    manifest = release_manifest(found(yard), {"Q8_0": parts})
    record = manifest.quants["Q8_0"]
    assert [(entry.path, entry.size_bytes, entry.sha256) for entry in record.files] == [
        (part.path, part.size_bytes, part.sha256) for part in parts
    ]
    assert record.sha256 == file_sha256(yard.file("Q8_0"))
    assert [entry.path for entry in manifest.quants["Q4_K_M"].files] == ["Lagoon-Q4_K_M.gguf"]


# ---- the evaluation ----------------------------------------------------------------------------------


def _measured_again(manifest: Manifest, name: str, n_questions: int) -> None:
    report = manifest.evaluations[SUITE]
    suite = Suite(name=name, tasks=(TaskEntry(task="piqa"),))
    manifest.evaluations[name] = report.model_copy(update={"suite": suite, "n_questions": n_questions})


def test_of_several_evaluations_the_one_with_the_most_questions_is_taken(yard: Yard) -> None:
    manifest = yard.manifest()
    _measured_again(manifest, "huge", 10**6)
    _measured_again(manifest, "small", 3)
    yard.keep(manifest)
    assert found(yard).suite == "huge"
    assert set(found(yard, suite="small").manifest.evaluations) == {"small"}


def test_an_evaluation_that_lacks_a_file_is_passed_over_for_one_that_does_not(yard: Yard) -> None:
    manifest = yard.manifest()
    _measured_again(manifest, "huge", 10**6)
    report = manifest.evaluations["huge"]
    left = tuple(m for m in report.measurements if m.file.label != "Q8_0")
    manifest.evaluations["huge"] = report.model_copy(update={"measurements": left})
    yard.keep(manifest)
    assert found(yard).suite == SUITE and found(yard, "Q4_K_M").suite == "huge"
    with pytest.raises(BadRequest, match=r"it lacks Q8_0 \(suite huge\)"):
        found(yard, suite="huge")


def test_results_of_lm_eval_are_published_under_the_suite_that_they_are_of(yard: Yard) -> None:
    manifest = yard.manifest()
    _measured_again(manifest, "huge", 10**6)
    yard.keep(manifest)
    assert [file.path for file in release_report_files(found(yard, suite="huge"))] == []
    names = [file.path for file in release_report_files(found(yard, suite=SUITE)) if "lm-eval" in file.path]
    assert len(names) == len(TASKS) * 3 and all(name.startswith(f"eval/{SUITE}/") for name in names)


def test_results_of_lm_eval_name_no_folder_of_this_machine(yard: Yard) -> None:
    record = yard.manifest().stages["evaluate Q8_0"]
    name = next(entry.path for entry in record.outputs if "results_" in entry.path)
    path = next(yard.folder.glob(f"stages/evaluate-Q8_0-*/files/{name}"))
    path.write_text(json.dumps({"data_files": f"{yard.folder}/a.jsonl", "of": str(REPO_DIR / "eval" / "x.jsonl")}))
    published = {file.path: file.read().decode() for file in release_report_files(found(yard))}
    assert json.loads(published[f"eval/{SUITE}/lm-eval/Q8_0/{TASKS[0]}.json"]) == {
        "data_files": "artifacts/a.jsonl", "of": "quantyard/eval/x.jsonl",
    }


def test_a_gguf_that_was_only_measured_is_found_where_its_source_is(yard: Yard) -> None:
    local, manifest = yard.source.local, yard.manifest()
    assert local is not None
    yard.file("Q8_0").rename(local.folder / yard.file("Q8_0").name)
    with pytest.raises(BadRequest, match="is gone"):
        found(yard)
    manifest.quants["Q8_0"] = manifest.quants["Q8_0"].model_copy(update={"made_by": ""})
    yard.keep(manifest)
    assert found(yard).paths["Q8_0"].parent == local.folder


# ---- the folder --------------------------------------------------------------------------------------


def test_the_folder_release_keeps_what_another_wrote_and_holds_models_as_hard_links(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"many bytes")
    file = made_release_file("README.md", "# A")
    parts = [made_release_file(f"{name}-00001-of-00002.gguf", "part") for name in ("model", "other")]
    before = [made_release_file(name, "x") for name in ("own/x.txt", "eval/t/report.md")]
    write_release(tmp_path, [file, *parts, *before])
    kept = file.__class__("model.gguf", model, 10, file_sha256(model))
    target = write_release(tmp_path, [file, kept, made_release_file("eval/s/report.md", "r")])
    names = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert names == {"README.md", "model.gguf", "eval/s/report.md", "own/x.txt", "other-00001-of-00002.gguf"}
    target = write_release(tmp_path, [file, kept], keep=False)
    assert {path.name for path in target.rglob("*")} == {"README.md", "model.gguf"}
    assert (target / "model.gguf").samefile(model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "release"]


def test_a_release_that_cannot_be_written_leaves_the_old_one_whole(tmp_path: Path) -> None:
    write_release(tmp_path, [made_release_file("README.md", "old")])
    gone = made_release_file("x.gguf", b"").__class__("x.gguf", tmp_path / "gone.gguf", 1, "0" * 64)
    with pytest.raises(FileNotFoundError):
        write_release(tmp_path, [made_release_file("README.md", "new"), gone])
    assert (tmp_path / "release" / "README.md").read_text() == "old"
    write_release(tmp_path, [made_release_file("README.md", "new")])
    assert (tmp_path / "release" / "README.md").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


# ---- parts -------------------------------------------------------------------------------------------


def test_files_above_the_limit_are_published_in_parts_that_verify_accepts(yard: Yard) -> None:
    names = [f"Lagoon-Q4_K_M-0000{n}-of-00002.gguf" for n in (1, 2)]

    def split(spec, space):
        result = writes(*names)(spec, space)
        for name in names:
            (space.out_dir / "files" / name).write_bytes(tiny("Q4_K_M"))
        files, size = space.out_dir / "files", len(tiny("Q4_K_M"))
        outputs = tuple(FileEntry(path=n, size_bytes=size, sha256=file_sha256(files / n)) for n in names)
        return result.model_copy(update={"outputs": outputs})

    engine = FakeEngine(behaviours={"split Q4_K_M": split})
    yard.monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    limit = yard.file("Q4_K_M").stat().st_size - 1
    assert yard.file("Q8_0").stat().st_size < limit
    said = yard.publish(f"--split-above={limit}")
    assert said.code == 0, said.err
    assert engine.ran == ["split Q4_K_M"]
    assert {name for name in yard.published() if name.endswith(".gguf")} == {"Lagoon-Q8_0.gguf", *names}
    record = parse_manifest(yard.published()["manifest.json"], "").quants["Q4_K_M"]
    assert [entry.path for entry in record.parts] == names
    assert record.sha256 == file_sha256(yard.file("Q4_K_M"))
    told = yard.verify(f"--file={yard.release}", "--json").json
    states = {entry["what"]: entry["state"] for entry in told["checks"]}
    assert (states[names[0]], states[names[1]], told["state"]) == ("ok", "ok", "ok")


def _splits(spec: StageSpec, space: Workspace) -> StageResult:
    assert isinstance(spec.request, SplitRequest)
    return writes(f"{spec.request.prefix}-00001-of-00001.gguf")(spec, space)


def test_splitting_again_runs_nothing(yard: Yard) -> None:
    engine = FakeEngine(behaviours={"split Q4_K_M": _splits, "split Q8_0": _splits})
    yard.monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    for _ in range(2):
        assert yard.publish("--split-above=1", "--dry-run").code == 0
    assert sorted(engine.ran) == ["split Q4_K_M", "split Q8_0"]


# ---- a manifest that cannot be read ------------------------------------------------------------------


def test_a_manifest_that_cannot_be_read_is_set_aside_and_never_written_over(yard: Yard) -> None:
    (yard.folder / "manifest.json").write_text('{"half": ')
    set_file_aside(yard.folder / "manifest.json")
    (yard.folder / "manifest.json").write_text("{}")
    aside = yard.folder.glob("manifest.unreadable-*.json")
    assert [path.read_text() for path in aside] == ['{"half": ']


def test_a_record_of_a_stage_is_whole_in_what_is_published(yard: Yard) -> None:
    record = release_manifest(found(yard), {}).stages["quantize Q8_0"]
    assert isinstance(record, StageRecord) and record.outputs[0].sha256 == file_sha256(yard.file("Q8_0"))


# ---- a user without a home or a name -----------------------------------------------------------------


def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `docker run --user 12345`: no HOME, and a uid that /etc/passwd does not have."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_a_release_is_published_by_a_user_without_a_home(yard: Yard) -> None:
    _nobody(yard.monkeypatch)
    yard.monkeypatch.delenv("HF_HOME")
    yard.monkeypatch.delenv("DOCKER_CONFIG")
    said = yard.publish()
    assert said.code == 0, said.err
    assert yard.verify(f"--repo={REPO}").code == 0


def test_a_local_set_up_without_a_home_is_looked_for_below_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    _nobody(monkeypatch)
    assert not default_data_path({}).is_absolute()
    assert default_data_path({"HOME": "/h"}) == Path("/h/.local/share")
    assert default_data_path({"XDG_DATA_HOME": "/d"}) == Path("/d")
