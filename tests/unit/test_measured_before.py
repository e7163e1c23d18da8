"""No evaluation takes a file out of the report that another one made; what cannot stand beside others is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import quantyard
from quantyard.api.call import api_request
from quantyard.plan.api_tests import add_contract_steps, kept_evaluations, measured_predictions
from quantyard.plan.steps import StageSpec, StepOutput
from quantyard.protocol.api_tests import ContractRequest
from quantyard.protocol.base import ExitCode, FileEntry, StageResult
from quantyard.protocol.predictions import FilePredictions, PredictedToken, PromptPredictions
from quantyard.protocol.runner import file_sha256
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Workspace
from quantyard.store.stages import ModelStore
from quantyard.workflows import planning
from quantyard.workflows.reporter import SilentReporter
from quantyard.workflows.run import run_build_plan
from tests.evaluations import evaluation
from tests.unit.fake_engine import FakeEngine, writes

pytestmark = pytest.mark.commands
PLACE = PredictedToken(tokens=(5, 6), logprobs=(-0.1, -2.5))
PREDICTIONS = FilePredictions(prompts=(PromptPredictions(prompt=(1, 2), places=(PLACE,)),))


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_source: Source) -> FakeEngine:
    """The engine of every command, on one source."""
    fake = FakeEngine()
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (fake, "asked for"))
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "artifacts"))
    return fake


def evaluated(quant: str, **settings: Any) -> tuple[list[str], str]:
    """The labels of the report, and what the command said."""
    lines: list[str] = []
    asked = {"suite": "smoke", "limit": 3} | settings
    built = quantyard.evaluate("x", quant=quant, progress=lines.append, **asked)
    assert built.report is not None and built.measured is not None
    assert built.manifest.evaluations[built.report.suite.name] == built.report
    return [m.file.label for m in built.report.measurements], "\n".join(lines)


@pytest.mark.parametrize("again", ["Q4_K_M", "Q8_0", "Q6_K"])
def test_a_narrower_evaluation_keeps_what_was_measured_with_the_same_settings(engine: FakeEngine, again: str) -> None:
    assert evaluated("Q4_K_M,Q8_0")[0] == ["BF16", "Q4_K_M", "Q8_0"]
    engine.ran.clear()
    labels, said = evaluated(again)
    assert labels == ["BF16", "Q4_K_M", "Q8_0", *(["Q6_K"] if again == "Q6_K" else [])]
    assert "Left out" not in said
    assert {label for label in engine.ran if "Q4_K_M" in label or "Q8_0" in label} == set(), "nothing is measured again"
    assert ("report" in engine.ran) == (again == "Q6_K")


def test_files_that_were_measured_one_by_one_stand_in_one_report(engine: FakeEngine) -> None:
    assert evaluated("Q4_K_M")[0] == ["BF16", "Q4_K_M"]
    assert evaluated("Q8_0")[0] == ["BF16", "Q4_K_M", "Q8_0"]


@pytest.mark.parametrize("suite", ["smoke", "cache", "speed"])
def test_what_the_baseline_itself_is_not_measured_for_is_kept_of_files_measured_one_by_one(
    engine: FakeEngine, suite: str
) -> None:
    for quant in ("Q4_K_M", "Q8_0"):
        built = quantyard.evaluate("x", quant=quant, suite=suite)
    part = "speed" if suite == "speed" else "cache"
    inputs = {name for name in built.manifest.stages["report"].inputs if name.startswith(part)}
    assert inputs - {f"{part}-BF16"} == {f"{part}-Q4_K_M", f"{part}-Q8_0"}
    request = built.manifest.stages[f"{part} Q4_K_M"].request
    assert request["baseline_file"] and set(built.manifest.stages[f"{part} Q4_K_M"].inputs) == {"model", "baseline"}


@pytest.mark.parametrize("settings", [{"max_length": 128}, {"baseline": "F16"}, {"n_gpu_layers": 4}], ids=str)
def test_what_was_measured_in_another_way_is_left_out_and_said(engine: FakeEngine, settings: dict[str, Any]) -> None:
    evaluated("Q4_K_M,Q8_0")
    labels, said = evaluated("Q4_K_M", **settings)
    assert "Q8_0" not in labels and "Left out of the report on smoke+limit-3: " in said and "cannot be compared" in said
    assert "QUANT=Q4_K_M,Q8_0" in said and "With the settings of this run:" in said
    assert evaluated("Q4_K_M")[0] == ["BF16", "Q4_K_M", "Q8_0"], "with the settings of before it is there again"


@pytest.mark.parametrize("settings", [{"limit": 5}, {"seed": 7}], ids=str)
def test_another_limit_or_seed_is_another_suite_and_touches_nothing(
    engine: FakeEngine, settings: dict[str, Any]
) -> None:
    evaluated("Q4_K_M,Q8_0")
    labels, said = evaluated("Q4_K_M", **settings)
    assert labels == ["BF16", "Q4_K_M"] and "Left out" not in said
    assert evaluated("Q8_0")[0] == ["BF16", "Q4_K_M", "Q8_0"]


def test_a_file_that_was_made_anew_with_other_bytes_is_left_out_until_it_is_measured(engine: FakeEngine) -> None:
    evaluated("Q4_K_M,Q8_0")
    engine.behaviours["quantize Q8_0"] = lambda spec, space: writes("model.gguf")(
        spec.__class__(spec.label + " anew", spec.row, spec.request, spec.inputs, spec.key), space
    )
    quantyard.build("x", quant="Q8_0", allow_requantize=True)
    labels, said = evaluated("Q4_K_M", allow_requantize=True)
    assert labels == ["BF16", "Q4_K_M"] and "or as another file" in said
    assert evaluated("Q4_K_M,Q8_0", allow_requantize=True)[0] == ["BF16", "Q4_K_M", "Q8_0"]


def test_an_evaluation_by_another_version_does_not_mix_with_the_last_one(engine: FakeEngine) -> None:
    evaluated("Q4_K_M,Q8_0")
    engine.image = "image-2"
    labels, said = evaluated("Q4_K_M")
    assert labels == ["BF16", "Q4_K_M"] and "or versions" in said


def test_the_plan_shows_the_same(engine: FakeEngine) -> None:
    evaluated("Q4_K_M,Q8_0")
    planned = quantyard.plan("x", quant="Q4_K_M", suite="smoke", limit=3)
    assert planned.plan.measuring is not None and planned.plan.measuring.labels == ("BF16", "Q4_K_M", "Q8_0")
    assert planned.to_run == ()


def test_a_release_of_one_file_tests_its_api_after_a_report_on_all(engine: FakeEngine) -> None:
    evaluated("Q4_K_M,Q8_0")
    request = api_request("eval", {"quant": "Q4_K_M", "suite": "smoke", "limit": 3}, MODEL="x")
    source = planning.workflow_source(request)
    plan = add_contract_steps(planning.workflow_plan(request, source), 1)
    built = run_build_plan(request, plan, SilentReporter())
    assert built.report is not None and [m.file.label for m in built.report.measurements] == ["BF16", "Q4_K_M", "Q8_0"]
    assert [report.label for report in built.contracts] == ["Q4_K_M"]


def test_the_api_test_is_told_what_was_measured_by_this_run_or_an_earlier_one(engine: FakeEngine) -> None:
    request = api_request("eval", {"quant": "Q4_K_M", "suite": "smoke", "limit": 3}, MODEL="x")
    source = planning.workflow_source(request)
    step = add_contract_steps(planning.workflow_plan(request, source), 1).steps[-1]
    assert step.inputs["measured"] == StepOutput("evaluate Q4_K_M")
    assert isinstance(step.request, ContractRequest) and step.request.has_measurement
    alone = planning.workflow_plan(replace(request, measure=None), source)
    step = add_contract_steps(alone, 1, {"Q4_K_M": PREDICTIONS}).steps[-1]
    assert isinstance(step.request, ContractRequest)
    assert step.request.measured == PREDICTIONS and "measured" not in step.inputs


def test_the_api_test_of_a_release_is_not_made_again_while_its_evaluation_is_there(engine: FakeEngine) -> None:
    measured = evaluation("Q4_K_M").model_copy(update={"predictions": PREDICTIONS})
    engine.behaviours["evaluate Q4_K_M"] = lambda spec, space: _leaves(spec, space, measured.model_dump_json())
    request = api_request("eval", {"quant": "Q4_K_M", "suite": "smoke", "limit": 3}, MODEL="x")
    source = planning.workflow_source(request)
    plan = add_contract_steps(planning.workflow_plan(request, source), 1)
    manifest = run_build_plan(request, plan, SilentReporter()).manifest
    store = ModelStore(request.artifacts, source.model)
    kept = kept_evaluations(manifest, store, {"Q4_K_M": PREDICTIONS, "Q8_0": PREDICTIONS})
    assert kept.keys() == {"Q4_K_M"}
    alone = add_contract_steps(planning.workflow_plan(replace(request, measure=None), source), 1, kept)
    engine.ran.clear()
    assert run_build_plan(replace(request, measure=None), alone, SilentReporter()).contracts and engine.ran == []
    other = PREDICTIONS.model_copy(update={"prompts": ()})
    assert kept_evaluations(manifest, store, {"Q4_K_M": other}) == {}, "of another measurement"


def _leaves(spec: StageSpec, space: Workspace, text: str) -> StageResult:
    path = space.out_dir / "files" / "evaluation.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    entry = FileEntry(path=path.name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
    return StageResult(stage=spec.row.name, exit_code=ExitCode.DONE, outputs=(entry,), facts={})


@pytest.mark.parametrize("changed", [False, True])
def test_what_was_measured_is_told_of_the_same_file_alone(engine: FakeEngine, changed: bool) -> None:
    manifest = quantyard.evaluate("x", quant="Q4_K_M,Q8_0", suite="smoke", limit=3).manifest
    assert not measured_predictions(manifest), "an earlier version kept none"
    name, report = next(iter(manifest.evaluations.items()))
    digest = "0" * 64 if changed else manifest.quants["Q8_0"].sha256
    measurements = tuple(
        m.model_copy(update={"predictions": PREDICTIONS, "file": m.file.model_copy(update={"sha256": digest})})
        for m in report.measurements
    )
    manifest.evaluations[name] = report.model_copy(update={"measurements": measurements})
    found = measured_predictions(manifest)
    assert found.get("Q8_0") == (None if changed else PREDICTIONS) and "BF16" not in found
