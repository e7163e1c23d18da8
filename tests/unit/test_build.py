"""A build on the fake engine: order, resuming, failing, publishing."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from quantyard.errors import BadRequest, NeedsPermission, ResultRefused, StageFailed
from quantyard.execution.runner import PlanRunner
from quantyard.protocol.base import ExitCode
from quantyard.quants.selection import parse_quants
from quantyard.sources.resolve import Source, refuse_quantized_source
from quantyard.store.manifest import read_manifest
from tests.unit.conftest import MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine, fails, interrupted, writes


def test_a_build_runs_its_stages_in_order_and_publishes_each_verified_file(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    engine = FakeEngine()
    built = make_runner(local_source, engine, "Q4_K_M,Q8_0").run(notes)
    assert engine.ran == ["convert", "quantize Q4_K_M", "verify Q4_K_M", "quantize Q8_0", "verify Q8_0"]
    assert [file.path.name for file in built] == ["tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"]
    assert built[0].path.read_text() == "model.gguf of quantize Q4_K_M"


def test_a_published_file_is_a_hard_link_and_not_a_copy(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(local_source, FakeEngine())
    path = runner.run(notes)[0].path
    assert path.samefile(runner.output("quantize Q4_K_M") / "model.gguf")


def test_a_repeat_of_a_finished_build_runs_nothing_and_changes_nothing(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    first = make_runner(local_source, FakeEngine())
    first.run(notes)
    manifest = first.store.folder / "manifest.json"
    before = (manifest.read_bytes(), manifest.stat().st_mtime_ns)
    engine = FakeEngine()
    make_runner(local_source, engine).run(notes)
    assert engine.ran == [] and engine.prepared == []
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns) == before


def test_a_further_quant_reuses_the_conversion(local_source: Source, make_runner: MakeRunner, notes: Notes) -> None:
    make_runner(local_source, FakeEngine()).run(notes)
    engine = FakeEngine()
    make_runner(local_source, engine, "Q4_K_M,Q6_K").run(notes)
    assert engine.ran == ["quantize Q6_K", "verify Q6_K"]


def test_the_converted_type_itself_is_verified_and_not_quantized(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    engine = FakeEngine()
    built = make_runner(local_source, engine, "BF16").run(notes)
    assert engine.ran == ["convert", "verify BF16"]
    assert built[0].path.name == "tiny-BF16.gguf"


def test_another_image_runs_the_stages_again(local_source: Source, make_runner: MakeRunner, notes: Notes) -> None:
    make_runner(local_source, FakeEngine()).run(notes)
    engine = FakeEngine(image="image-2")
    make_runner(local_source, engine).run(notes)
    assert "convert" in engine.ran


def test_a_download_survives_another_image(hub_source: Source, make_runner: MakeRunner, notes: Notes) -> None:
    make_runner(hub_source, FakeEngine()).run(notes)
    engine = FakeEngine(image="image-2")
    make_runner(hub_source, engine).run(notes)
    assert "fetch" not in engine.ran and "convert" in engine.ran


def test_an_image_that_is_not_built_yet_is_built_before_the_first_stage(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    engine = FakeEngine(image=None)
    runner = make_runner(local_source, engine)
    assert runner.find_finished() == {}
    runner.run(notes)
    assert engine.prepared == ["builder"]


@pytest.mark.commands
@pytest.mark.parametrize("stage", ["convert", "quantize Q4_K_M", "verify Q4_K_M"])
@pytest.mark.parametrize("code", [ExitCode.UNSUPPORTED_MODEL, ExitCode.RESOURCES, ExitCode.BUG])
def test_a_failed_stage_leaves_nothing_under_a_final_name_and_the_next_run_finishes(
    stage: str, code: ExitCode, local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(local_source, FakeEngine(behaviours={stage: fails(code)}))
    with pytest.raises(StageFailed) as failure:
        runner.run(notes)
    assert failure.value.code == code and "told to fail" in failure.value.message
    assert not list(runner.store.folder.glob("*.gguf"))
    assert not _unfinished(runner.store.folder)
    assert make_runner(local_source, FakeEngine()).run(notes)[0].path.exists()


def test_ctrl_c_keeps_what_finished_and_removes_the_rest(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(local_source, FakeEngine(behaviours={"quantize Q4_K_M": interrupted}))
    with pytest.raises(KeyboardInterrupt):
        runner.run(notes)
    assert not _unfinished(runner.store.folder)
    engine = FakeEngine()
    make_runner(local_source, engine).run(notes)
    assert engine.ran == ["quantize Q4_K_M", "verify Q4_K_M"]


def test_an_interrupted_download_is_kept_to_resume_from(
    hub_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(hub_source, FakeEngine(behaviours={"fetch": interrupted}))
    with pytest.raises(KeyboardInterrupt):
        runner.run(notes)
    again = make_runner(hub_source, FakeEngine())
    again.find_finished()
    assert again.partial_bytes() == len("half")


def test_a_stage_that_names_a_file_it_did_not_leave_does_not_count(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    def lies(spec, space):  # type: ignore[no-untyped-def]
        result = writes("model.gguf", "reference.json")(spec, space)
        (space.out_dir / "files" / "model.gguf").unlink()
        return result

    runner = make_runner(local_source, FakeEngine(behaviours={"convert": lies}))
    with pytest.raises(ResultRefused, match=r"model\.gguf is not there"):
        runner.run(notes)
    assert not _unfinished(runner.store.folder) and not list((runner.store.folder / "stages").glob("convert*"))


def test_a_file_that_somebody_removed_is_made_again(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(local_source, FakeEngine())
    runner.run(notes)
    (runner.output("quantize Q4_K_M") / "model.gguf").unlink()
    engine = FakeEngine()
    make_runner(local_source, engine).run(notes)
    assert engine.ran == ["quantize Q4_K_M"]  # the same bytes came out, so the verification still stands


def test_the_manifest_says_what_was_made_from_what_by_what(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(local_source, FakeEngine())
    record = runner.run(notes)[0].record
    manifest = json.loads((runner.store.folder / "manifest.json").read_text())
    assert manifest["quants"]["Q4_K_M"]["sha256"] == record.sha256
    assert manifest["source"]["commit"] == local_source.model.commit
    assert manifest["stages"]["convert"]["ran_by"] == {"engine": "fake"}
    assert manifest["stages"]["quantize Q4_K_M"]["inputs"].keys() == {"source"}


def test_a_quant_that_needs_an_imatrix_is_refused_before_anything_runs(
    hub_source: Source, make_runner: MakeRunner
) -> None:
    with pytest.raises(BadRequest, match="IQ2_XS cannot be made without an importance matrix"):
        make_runner(hub_source, FakeEngine(), "Q8_0,IQ2_XS")


def test_an_already_quantized_conversion_is_not_quantized_again_unasked(local_source: Source) -> None:
    quants = parse_quants("Q8_0,Q4_K_M")
    with pytest.raises(NeedsPermission, match="making Q4_K_M of it"):
        refuse_quantized_source(local_source, quants, "q8_0", allowed=False)
    refuse_quantized_source(local_source, quants, "q8_0", allowed=True)
    refuse_quantized_source(local_source, parse_quants("Q8_0"), "q8_0", allowed=False)


def test_a_build_without_hard_links_still_publishes(
    local_source: Source, make_runner: MakeRunner, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("os.link", refuse)
    path = make_runner(local_source, FakeEngine()).run(notes)[0].path
    shutil.copy(path, path.with_suffix(".copy"))
    assert path.read_text() == "model.gguf of quantize Q4_K_M"


def _unfinished(folder: Path) -> list[Path]:
    return list((folder / "stages").glob(".*"))


def test_a_quant_that_fails_leaves_the_others_alone_if_that_is_wanted(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    engine = FakeEngine(behaviours={"quantize Q4_K_M": fails(ExitCode.RESOURCES)})
    runner = make_runner(local_source, engine, "Q4_K_M,Q8_0")
    runner.keep_going = True
    built = runner.run(notes)
    assert [file.quant for file in built] == ["Q8_0"]
    assert list(runner.failures) == ["quantize Q4_K_M"] and "verify Q4_K_M" not in engine.ran


def test_what_all_quants_need_ends_the_build_whatever_is_wanted(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(local_source, FakeEngine(behaviours={"convert": fails(ExitCode.UNSUPPORTED_MODEL)}))
    runner.keep_going = True
    with pytest.raises(StageFailed):
        runner.run(notes)


def test_the_manifest_tells_of_the_file_that_is_there_whatever_was_made_in_between(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    def key(runner: PlanRunner) -> str:
        manifest = read_manifest(runner.store.folder / "manifest.json")
        assert manifest is not None
        return manifest.stages["quantize Q4_K_M"].key

    first = make_runner(local_source, FakeEngine())
    first.run(notes)
    before = key(first)
    other = make_runner(local_source, FakeEngine(image="image-2"))
    other.run(notes)
    assert key(other) != before
    engine = FakeEngine()
    again = make_runner(local_source, engine)
    again.run(notes)
    assert engine.ran == [] and key(again) == before
