"""The plan of a measuring: its baseline, what each stage is given, and what the user may say about it."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantyard.cli.parser import add_command_options
from quantyard.cli.request import read_command_request
from quantyard.errors import BadRequest
from quantyard.execution.runner import PlanRunner
from quantyard.hub.client import HubAccess
from quantyard.plan.evaluation import add_measuring_steps, plan_brought_datasets, plan_measure_options
from quantyard.plan.measuring_steps import MeasureOptions
from quantyard.plan.steps import ExternalInput
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.builder import OutType
from quantyard.protocol.evaluation import DivergenceSettings, Runtime
from quantyard.protocol.runner import Stage, file_sha256
from quantyard.quants.catalog import find_quant
from quantyard.sources.resolve import Source, find_source
from quantyard.store.artifact import Artifact
from quantyard.store.hash_cache import HashCache
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.unit.conftest import OPTIONS, SUITE, MakeMeasured, MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine


def _steps(runner: PlanRunner) -> dict[str, Any]:
    return {step.label: step for step in runner.plan.steps}


# ---- the baseline ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("outtype", "label"), [("auto", "BF16"), ("f16", "F16"), ("f32", "F32")])
def test_the_baseline_is_what_the_quants_are_made_of(
    outtype: OutType, label: str, local_source: Source, make_runner: MakeRunner
) -> None:
    plan = add_measuring_steps(make_runner(local_source, FakeEngine(), "Q4_K_M", outtype).plan, OPTIONS)
    assert plan.measuring is not None
    assert (plan.measuring.baseline, plan.measuring.labels) == (label, (label, "Q4_K_M"))


def test_a_baseline_whose_type_only_the_conversion_can_tell_is_called_unquantized(
    local_source: Source, measured: MakeMeasured
) -> None:
    plan = measured(replace(local_source, dtypes={}), FakeEngine()).plan
    assert plan.measuring is not None and plan.measuring.baseline == "unquantized"


def test_another_baseline_is_built_and_verified_like_any_quant(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine()
    built = measured(local_source, engine, baseline=find_quant("Q8_0")).run(notes)
    assert engine.ran.index("verify Q8_0") < engine.ran.index("evaluate Q8_0") < engine.ran.index("evaluate Q4_K_M")
    assert "evaluate BF16" not in engine.ran and [file.quant for file in built] == ["Q8_0", "Q4_K_M"]


@pytest.mark.commands
@pytest.mark.parametrize(
    "changes", [{"quants": "BF16,Q4_K_M"}, {"baseline": find_quant("Q4_K_M"), "quants": "Q4_K_M,Q8_0"}]
)
def test_a_quant_that_is_the_baseline_is_measured_once(
    changes: dict[str, Any], local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine()
    runner = measured(local_source, engine, **changes)
    runner.run(notes)
    assert runner.plan.measuring is not None
    assert [label for label in engine.ran if label.startswith("evaluate")] == [
        f"evaluate {label}" for label in runner.plan.measuring.labels
    ]
    assert len(runner.plan.measuring.labels) == 2


def test_only_other_files_are_held_against_the_baseline(local_source: Source, measured: MakeMeasured) -> None:
    steps = _steps(measured(local_source, FakeEngine()))
    assert steps["divergence BF16"].inputs.keys() == {"model"} and not steps["divergence BF16"].request.baseline_file
    assert steps["divergence Q4_K_M"].inputs.keys() == {"model", "baseline"}
    assert steps["divergence Q4_K_M"].request.baseline_file == "model.gguf"


def test_a_conversion_to_q8_0_is_no_baseline(local_source: Source, make_runner: MakeRunner) -> None:
    plan = make_runner(local_source, FakeEngine(), "Q8_0", "q8_0").plan
    with pytest.raises(BadRequest, match=r"\(q8_0\) is quantized already") as error:
        add_measuring_steps(plan, OPTIONS)
    assert "BASELINE=Q8_0" in error.value.hint
    assert add_measuring_steps(plan, replace(OPTIONS, baseline=find_quant("Q8_0"))).measuring is not None


@pytest.mark.parametrize(("file_type", "type_name"), [(1, "F16"), (0, "F32"), (32, "BF16")])
def test_an_unquantized_gguf_is_the_baseline_itself(
    file_type: int, type_name: str, tmp_path: Path, measured: MakeMeasured
) -> None:
    source = _gguf(tmp_path, file_type, type_name)
    step = _steps(measured(source, FakeEngine()))[f"evaluate {type_name}"]
    assert step.request.model_file == "m.gguf"
    assert source.local is not None and step.inputs["model"] == ExternalInput(source.local)


def test_with_a_quantized_gguf_there_is_nothing_to_compare_with_unless_a_baseline_is_named(
    tmp_path: Path, measured: MakeMeasured
) -> None:
    source = _gguf(tmp_path, 15, "Q4_K")
    with pytest.raises(BadRequest, match=r"m\.gguf is quantized already.*no unquantized file") as error:
        measured(source, FakeEngine())
    assert "BASELINE=" in error.value.hint
    assert "evaluate Q4_K_M" in _steps(measured(source, FakeEngine(), baseline=find_quant("Q4_K_M")))


# ---- what the stages are given -----------------------------------------------------------------------


def test_a_stage_is_told_the_hash_of_every_file_it_reads(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine()
    runner = measured(local_source, engine)
    runner.run(notes)
    path = runner.output("quantize Q4_K_M") / "model.gguf"
    told = engine.told["evaluate Q4_K_M"]
    assert told.keys() == {"model", "datasets"}
    assert {"path": "model.gguf", "size_bytes": path.stat().st_size, "sha256": file_sha256(path)} in told["model"]
    assert engine.told["datasets"] == {}


def test_a_stage_reads_what_it_is_told_and_does_without(tmp_path: Path) -> None:
    stage = Stage("evaluate", tmp_path, tmp_path, {})
    assert stage.input_files("model") == ()
    entry = FileEntry(path="model.gguf", size_bytes=3, sha256="a" * 64)
    (tmp_path / "inputs.json").write_text(json.dumps({"model": [entry.model_dump()]}))
    assert stage.input_files("model") == (entry,)
    assert stage.input_files("datasets") == ()


def test_a_suite_whose_tasks_are_local_fetches_nothing(local_source: Source, measured: MakeMeasured) -> None:
    steps = _steps(measured(local_source, FakeEngine(), suite=SUITE.model_copy(update={"needs_network": False})))
    assert "datasets" not in steps and steps["evaluate BF16"].inputs.keys() == {"model"}


def test_a_users_own_tasks_and_text_reach_the_stages_that_read_them(
    local_source: Source, measured: MakeMeasured, tmp_path: Path
) -> None:
    files = (FileEntry(path="tasks/mine.yaml", size_bytes=3, sha256="b" * 64),)
    artifact = Artifact(files_digest(files), files, tmp_path)
    changes = {"include_path": "tasks", "divergence": DivergenceSettings(text="mine.txt")}
    steps = _steps(measured(local_source, FakeEngine(), suite=SUITE.model_copy(update=changes), files=artifact))
    for label in ("datasets", "evaluate BF16", "divergence Q4_K_M"):
        assert steps[label].inputs["suite"] == ExternalInput(artifact)
    assert "suite" not in steps["speed BF16"].inputs


def test_a_suite_without_divergence_and_speed_has_no_such_stages(local_source: Source, measured: MakeMeasured) -> None:
    suite = SUITE.model_copy(update={"divergence": None, "speed": None})
    steps = _steps(measured(local_source, FakeEngine(), suite=suite))
    assert steps["report"].inputs.keys() == {"evaluate-BF16", "evaluate-Q4_K_M"}


def test_data_sets_brought_from_elsewhere_give_the_same_measurement(
    local_source: Source, measured: MakeMeasured, notes: Notes, tmp_path: Path
) -> None:
    first = measured(local_source, FakeEngine())
    first.run(notes)
    hashes = HashCache(tmp_path / "hashes.json")
    brought = plan_brought_datasets(first.output("datasets"), hashes)
    engine = FakeEngine()
    measured(local_source, engine, datasets=brought).run(notes)
    assert engine.ran == []


def test_a_folder_without_data_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="does not hold any files") as error:
        plan_brought_datasets(tmp_path, HashCache(tmp_path / "hashes.json"))
    assert "datasets" in error.value.hint


def test_what_the_user_names_becomes_options(tmp_path: Path) -> None:
    options = _options(tmp_path, SUITE="smoke", LIMIT="7", SEED="3", BASELINE="q8_0", THREADS="2", N_GPU_LAYERS="-1")
    assert options.suite.name == "smoke+limit-7+seed-3" and not options.suite.needs_network
    assert {entry.limit for entry in options.suite.tasks} == {7}
    assert options.runtime == Runtime(threads=2, n_gpu_layers=-1, max_length=0)
    assert options.files is None and options.datasets is None


def test_data_sets_are_taken_from_a_folder_only_where_the_suite_needs_any(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "questions.arrow").write_text("questions")
    asked = {"DATASETS": str(tmp_path / "sets")}
    brought = _options(tmp_path, SUITE="smoke", TASKS="arc_easy", **asked).datasets
    assert brought is not None and [f.path for f in brought.files] == ["questions.arrow"]
    assert _options(tmp_path, SUITE="smoke", **asked).datasets is None


def test_an_unknown_suite_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"'quikc'.*'quick'"):
        _options(tmp_path, SUITE="quikc")


def _options(artifacts: Path, **environment: str) -> MeasureOptions:
    parser = argparse.ArgumentParser()
    add_command_options(parser)
    request = read_command_request(parser.parse_args([]), {"ARTIFACTS": str(artifacts), **environment})
    assert request.measure is not None
    return plan_measure_options(request, request.measure)


def _gguf(folder: Path, file_type: int, type_name: str) -> Source:
    path = folder / "m.gguf"
    tensors = (TensorSpec("blk.0.ffn_up.weight", (256, 2), type_name),)
    path.write_bytes(gguf({**SMALL_METADATA, "general.file_type": file_type}, tensors))
    return find_source(str(path), HubAccess(), HashCache(folder / "hashes"), allow_pickle=False, gguf_file=None)
