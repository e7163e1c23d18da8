"""Measuring on the fake engine: what runs, what runs again, what is published."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantyard.errors import ResultRefused, StageFailed
from quantyard.files.safe_files import copy_open_file
from quantyard.protocol.base import ExitCode
from quantyard.sources.resolve import Source
from quantyard.store.manifest import read_manifest, stage_record_file
from tests.unit.conftest import SUITE, MakeMeasured, MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine, fails, interrupted, writes

pytestmark = pytest.mark.commands


def test_a_measuring_runs_its_stages_in_order_around_the_build(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine()
    measured(local_source, engine, "Q4_K_M,Q8_0").run(notes)
    assert engine.ran == [
        "datasets", "convert", "quantize Q4_K_M", "verify Q4_K_M", "quantize Q8_0", "verify Q8_0",
        "evaluate BF16", "evaluate Q4_K_M", "evaluate Q8_0", "divergence BF16, Q4_K_M, Q8_0",
        "speed BF16", "speed Q4_K_M", "speed Q8_0", "report",
    ]  # fmt: skip


def test_an_unknown_task_ends_the_command_before_anything_is_converted(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine(behaviours={"datasets": fails(ExitCode.BAD_REQUEST)})
    with pytest.raises(StageFailed):
        measured(local_source, engine).run(notes)
    assert engine.ran == ["datasets"]


def test_a_repeat_of_a_finished_measuring_runs_nothing_and_changes_no_file(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    first = measured(local_source, FakeEngine())
    first.run(notes)
    before = _times(first.store.folder)
    engine = FakeEngine()
    again = measured(local_source, engine)
    again.run(notes)
    assert engine.ran == engine.prepared == again.ran == []
    assert _times(first.store.folder) == before
    assert again.measured == first.measured and again.measured is not None


def test_a_model_that_is_built_is_only_measured(
    local_source: Source, make_runner: MakeRunner, measured: MakeMeasured, notes: Notes
) -> None:
    make_runner(local_source, FakeEngine()).run(notes)
    engine = FakeEngine()
    builder = measured(local_source, engine)
    builder.run(notes)
    assert engine.prepared == ["eval"]
    assert {label.split()[0] for label in engine.ran} == {"datasets", "evaluate", "divergence", "speed", "report"}
    assert set(builder.ran) - set(engine.ran) == {"divergence BF16", "divergence Q4_K_M"}  # as one run


def test_a_further_quant_alone_is_built_measured_and_reported(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    measured(local_source, FakeEngine()).run(notes)
    engine = FakeEngine()
    measured(local_source, engine, "Q4_K_M,Q6_K").run(notes)
    assert engine.ran == [
        "quantize Q6_K", "verify Q6_K", "evaluate Q6_K", "divergence Q6_K", "speed Q6_K", "report"
    ]  # fmt: skip


def test_files_read_in_step_are_kept_one_by_one_and_a_failed_run_keeps_none(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    together = "divergence BF16, Q4_K_M, Q8_0"
    with pytest.raises(StageFailed):
        measured(local_source, FakeEngine(behaviours={together: fails(ExitCode.BUG)}), "Q4_K_M,Q8_0").run(notes)
    engine = FakeEngine()
    builder = measured(local_source, engine, "Q4_K_M,Q8_0")
    builder.run(notes)
    assert engine.ran[0] == together
    kept = [path.name.rpartition("-")[0] for path in (builder.store.folder / "stages").glob("divergence-*")]
    assert sorted(kept) == ["divergence-BF16", "divergence-Q4_K_M", "divergence-Q8_0"]
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None
    assert {"divergence BF16", "divergence Q4_K_M", "divergence Q8_0"} <= manifest.stages.keys()
    assert manifest.stages["divergence Q8_0"].request["others"] == []


def test_records_name_the_file_of_a_stage_and_the_machine_that_ran_it(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    elsewhere = "aarch64 of another machine"
    engine = FakeEngine(cpus={"quantize Q4_K_M": elsewhere, "divergence BF16, Q4_K_M": elsewhere})
    builder = measured(local_source, engine)
    builder.run(notes)
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None
    records = manifest.stages
    assert {label for label, record in records.items() if record.cpu == elsewhere} == {
        "quantize Q4_K_M", "divergence BF16", "divergence Q4_K_M",
    }  # fmt: skip
    assert {taken.label for taken in builder.taken if taken.cpu == elsewhere} == {
        "quantize Q4_K_M", "divergence BF16", "divergence Q4_K_M",
    }  # fmt: skip
    assert records["convert"].quant == records["report"].quant == "" and records["convert"].cpu == ""
    assert records["verify Q4_K_M"].quant == records["speed Q4_K_M"].quant == "Q4_K_M"
    for label, record in records.items():
        assert stage_record_file(label, record) == record.quant
        assert stage_record_file(label, record.model_copy(update={"quant": None})) == record.quant, (
            "as version 0.1.0 wrote"
        )


def test_what_memory_does_not_hold_is_read_in_several_runs(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine(memory_bytes=1)
    measured(local_source, engine, "Q4_K_M,Q8_0").run(notes)
    ran = [label for label in engine.ran if label.startswith("divergence")]
    assert ran == ["divergence BF16, Q4_K_M", "divergence Q8_0"]


def test_another_margin_is_a_matter_of_the_report_alone(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    measured(local_source, FakeEngine()).run(notes)
    engine = FakeEngine()
    measured(local_source, engine, suite=SUITE.model_copy(update={"margin": 0.02})).run(notes)
    assert engine.ran == ["report"]


def test_a_speed_is_recorded_with_the_machine_of_the_engine(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine(cpu="a CPU"))
    builder.run(notes)
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None
    requests = {label: record.request for label, record in manifest.stages.items()}
    named = {label: request["machine"] for label, request in requests.items() if "machine" in request}
    assert named == dict.fromkeys(("speed BF16", "speed Q4_K_M"), f"a CPU, {os.cpu_count()} cores")


def test_a_speed_measured_on_another_machine_is_another_measurement(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    measured(local_source, FakeEngine()).run(notes)
    engine = FakeEngine(cpu="another CPU")
    measured(local_source, engine).run(notes)
    assert engine.ran == ["speed BF16", "speed Q4_K_M"]  # the fake finds the same, so the report still stands


def test_every_image_that_a_stage_needs_is_built_before_the_first_stage(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine(image=None)
    measured(local_source, engine).run(notes)
    assert engine.prepared == ["eval", "builder"]


@pytest.mark.parametrize(
    "stage", ["datasets", "evaluate BF16", "evaluate Q4_K_M", "divergence BF16, Q4_K_M", "speed BF16", "report"]
)
def test_a_measuring_killed_at_any_stage_goes_on_there(
    stage: str, local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    killed = measured(local_source, FakeEngine(behaviours={stage: interrupted}))
    with pytest.raises(KeyboardInterrupt):
        killed.run(notes)
    assert not (killed.store.folder / "eval").exists()
    engine = FakeEngine()
    measured(local_source, engine).run(notes)
    labels = [step.label for step in killed.plan.steps if step.row.name != "divergence"]
    labels.insert(labels.index("speed BF16"), "divergence BF16, Q4_K_M")
    assert engine.ran == labels[labels.index(stage) :]


def test_a_file_is_published_as_soon_as_it_is_verified_whatever_happens_to_the_measuring(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine(behaviours={"evaluate BF16": fails(ExitCode.BUG)}))
    with pytest.raises(StageFailed):
        builder.run(notes)
    assert [path.name for path in builder.store.folder.glob("*.gguf")] == ["tiny-Q4_K_M.gguf"]
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None and list(manifest.quants) == ["Q4_K_M"] and manifest.evaluations == {}


@pytest.mark.parametrize(("stage", "kept"), [("evaluate BF16", True), ("datasets", True), ("speed BF16", False)])
def test_what_a_stage_can_resume_from_is_kept(
    stage: str, kept: bool, local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine(behaviours={stage: interrupted}))
    with pytest.raises(KeyboardInterrupt):
        builder.run(notes)
    assert bool(list(builder.store.folder.glob("stages/.*/out/files/half.gguf"))) == kept


def test_a_half_evaluation_is_not_taken_for_a_part_of_the_download(
    hub_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(hub_source, FakeEngine(behaviours={"evaluate BF16": interrupted})).run(notes)
    again = measured(hub_source, FakeEngine())
    again.find_finished()
    assert again.partial_bytes() == 0


# ---- what is published -------------------------------------------------------------------------------


def test_report_and_plots_are_published_beside_the_files_and_in_the_manifest(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine())
    builder.run(notes)
    assert builder.measured is not None
    assert builder.measured.folder == builder.store.folder / "eval" / "trial"
    assert {p.name for p in builder.measured.folder.rglob("*")} == {"report.json", "report.md", "plots", "size.svg"}
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None and manifest.evaluations == {"trial": builder.measured.report}
    assert [m.file.label for m in builder.measured.report.measurements] == ["BF16", "Q4_K_M"]


def test_the_report_of_another_suite_stands_beside_the_first(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    measured(local_source, FakeEngine()).run(notes)
    builder = measured(local_source, FakeEngine(), suite=SUITE.model_copy(update={"name": "../my suite"}))
    builder.run(notes)
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None and manifest.evaluations.keys() == {"trial", "../my suite"}
    assert {p.name for p in (builder.store.folder / "eval").iterdir()} == {"trial", "my-suite"}


def test_a_newer_report_replaces_the_older_one_whole(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine())
    builder.run(notes)
    folder = builder.store.folder / "eval" / "trial"
    (folder / "stale.svg").write_text("of an older report")
    (folder / "report.md").write_text("edited")
    measured(local_source, FakeEngine()).run(notes)
    assert not (folder / "stale.svg").exists() and (folder / "report.md").read_text() == "# tiny"
    assert (builder.output("report") / "report.md").read_text() == "# tiny"
    assert [p.name for p in folder.parent.iterdir()] == ["trial"]


def test_a_run_killed_while_it_publishes_leaves_no_half_report(
    local_source: Source, measured: MakeMeasured, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = measured(local_source, FakeEngine())
    with monkeypatch.context() as patch:
        patch.setattr("quantyard.store.visible_files.copy_open_file", _copies_until("size.svg", copy_open_file))
        with pytest.raises(KeyboardInterrupt):
            builder.run(notes)
    assert not (builder.store.folder / "eval" / "trial").exists()
    engine = FakeEngine()
    measured(local_source, engine).run(notes)
    assert engine.ran == [] and (builder.store.folder / "eval" / "trial" / "plots" / "size.svg").exists()


def test_a_report_that_is_none_ends_with_an_error_and_not_in_the_manifest(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine(behaviours={"report": writes("report.json", "report.md")}))
    with pytest.raises(ResultRefused, match="is not a report"):
        builder.run(notes)
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None and manifest.evaluations == {} and not (builder.store.folder / "eval").exists()


def test_a_manifest_of_before_there_were_evaluations_is_still_read(
    local_source: Source, measured: MakeMeasured, make_runner: MakeRunner, notes: Notes
) -> None:
    builder = make_runner(local_source, FakeEngine())
    builder.run(notes)
    path = builder.store.folder / "manifest.json"
    old = json.loads(path.read_text())
    del old["evaluations"]
    path.write_text(json.dumps(old))
    measured(local_source, FakeEngine()).run(notes)
    manifest = read_manifest(path)
    assert manifest is not None and "trial" in manifest.evaluations and "convert" in manifest.stages


def _copies_until(name: str, copy: Callable[..., Any]) -> Callable[..., Any]:
    def behave(source: int, target: Path) -> Any:
        if target.name == name:
            raise KeyboardInterrupt
        return copy(source, target)

    return behave


def _times(folder: Path) -> dict[str, int]:
    paths = (p for p in folder.rglob("*") if not p.name.startswith(".lock"))
    return {os.fspath(p): p.stat().st_mtime_ns for p in paths}


@pytest.mark.parametrize("stage", ["quantize Q8_0", "verify Q8_0", "evaluate Q8_0", "speed Q8_0"])
def test_the_report_is_of_the_quants_that_did_not_fail(
    stage: str, local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine(behaviours={stage: fails(ExitCode.BUG)})
    builder = measured(local_source, engine, "Q4_K_M,Q8_0")
    builder.keep_going = True
    builder.run(notes)
    assert list(builder.failures) == [stage] and builder.measured is not None
    assert [m.file.label for m in builder.measured.report.measurements] == ["BF16", "Q4_K_M"]


def test_a_file_that_spoils_the_run_of_all_is_found_by_reading_each_alone(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    bad = {"divergence BF16, Q4_K_M, Q8_0": fails(ExitCode.BUG), "divergence Q8_0": fails(ExitCode.BUG)}
    engine = FakeEngine(behaviours=bad)
    builder = measured(local_source, engine, "Q4_K_M,Q8_0")
    builder.keep_going = True
    builder.run(notes)
    assert list(builder.failures) == ["divergence Q8_0"] and builder.measured is not None
    assert [m.file.label for m in builder.measured.report.measurements] == ["BF16", "Q4_K_M"]


def test_without_the_baseline_there_is_nothing_to_report(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine(behaviours={"evaluate BF16": fails(ExitCode.BUG)}))
    builder.keep_going = True
    builder.run(notes)
    assert list(builder.failures) == ["evaluate BF16"] and builder.measured is None
