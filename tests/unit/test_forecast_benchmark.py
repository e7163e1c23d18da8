"""`make rates`: a random model through the ordinary stages, and what a plan knows afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builder.random_model import random_model_bf16, random_model_shapes
from quantyard import cli
from quantyard.forecast.benchmark import TRIALS, TimingBench, forecast_benchmark_plan
from quantyard.forecast.samples import ForecastBook, read_forecast_book, write_forecast_book
from quantyard.hardware.machine import cpu_name
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.builder import RandomModelRequest
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Workspace
from quantyard.workflows import planning
from tests.unit.fake_engine import Behaviour, FakeEngine, fails, writes
from tests.unit.test_forecast_time import _sample

pytestmark = pytest.mark.commands

Run = Callable[..., int]


def _random_model(spec: StageSpec, space: Workspace) -> StageResult:
    """The shapes that were asked for, a little smaller and without their bytes: a plan reads the header alone."""
    asked = spec.request
    assert isinstance(asked, RandomModelRequest)
    result = writes("config.json", "model.safetensors", "tokenizer.model")(spec, space)
    at, header = 0, {}
    for name, shape in random_model_shapes(asked.model_copy(update={"vocab_size": 1000, "width": 256})).items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    files = space.out_dir / "files"
    with (files / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
    (files / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    return _rehashed(result, files)


def _rehashed(result: StageResult, files: Path) -> StageResult:
    from quantyard.protocol.runner import file_sha256

    outputs = tuple(
        entry.model_copy(update={"size_bytes": (files / entry.path).stat().st_size,
                                 "sha256": file_sha256(files / entry.path)})
        for entry in result.outputs
    )  # fmt: skip
    return result.model_copy(update={"outputs": outputs})


def _asks(spec: StageSpec, space: Workspace) -> StageResult:
    return writes("evaluation.json")(spec, space).model_copy(update={"facts": {"n_questions": 192}})


def _engine(name: str = "docker", **behaviours: Behaviour) -> FakeEngine:
    makes = {f"evaluate {label}": _asks for label in ("BF16", "Q4_K_M", "Q8_0")}
    makes |= {"random_model": _random_model, "calibrate": writes("imatrix.gguf", "calibration.txt")}
    return FakeEngine(name=name, behaviours=makes | behaviours)


@pytest.fixture
def run(local_source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command on this engine; returns its exit code."""
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)

    def go(engine: FakeEngine, *argv: str) -> int:
        monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
        with pytest.raises(SystemExit) as ended:
            cli.main([*argv, f"--artifacts={tmp_path / 'artifacts'}"])
        return int(ended.value.code or 0)

    return go


PLAN = ("plan", "--model=x", "--quants=Q4_K_M,Q8_0", "--suite=smoke", "--json")


def test_before_it_a_plan_says_what_to_type_and_after_it_how_long_every_stage_takes(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine = _engine()
    assert run(engine, *PLAN[:-1]) == 0
    assert "make rates" in capsys.readouterr().out
    assert run(engine, "rates", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {s["kind"] for s in said["stages"]} >= {"convert", "calibrate", "quantize", "verify", "evaluate", "report"}
    assert all(s["synthetic"] for s in said["stages"])
    assert run(engine, *PLAN) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["time_not_known"] == [] and all(stage["seconds"] is not None for stage in plan["stages"])
    assert run(engine, *PLAN[:-1]) == 0
    text = capsys.readouterr().out
    assert "make rates" not in text and "~ is from other models" in text
    assert "more for IMATRIX=auto" not in text
    assert [path.name for path in (tmp_path / "artifacts").iterdir() if path.name.startswith(".rates-")] == []


def test_again_it_takes_the_place_of_what_it_timed_before_on_this_engine_alone(run: Run, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    own = [_sample("convert", 9.0), _sample("convert", 8.0, synthetic=True)]
    other = _sample("convert", 7.0, cpu=cpu_name(), engine="local", synthetic=True)
    write_forecast_book(artifacts, ForecastBook(samples=[*own, other]))
    for _ in range(2):
        assert run(_engine(), "rates") == 0
    found = read_forecast_book(artifacts).samples
    assert found[:3] == [*own, other], "of another CPU, and of the other engine"
    assert len([s for s in found if s.kind == "convert" and s.engine == "docker" and s.cpu == cpu_name()]) == 2


def test_one_that_fails_leaves_the_book_as_it_was(run: Run, tmp_path: Path) -> None:
    write_forecast_book(tmp_path / "artifacts", ForecastBook(samples=[_sample("convert", 9.0)]))
    assert run(_engine(**{"speed BF16": fails(ExitCode.RESOURCES)}), "rates") == ExitCode.RESOURCES
    assert read_forecast_book(tmp_path / "artifacts").samples == [_sample("convert", 9.0)]


def test_types_are_made_with_a_matrix_and_without_and_few_of_them_are_measured(
    local_source: Source, tmp_path: Path
) -> None:
    labels = [
        step.label
        for step in forecast_benchmark_plan(TRIALS[1], local_source, TimingBench(FakeEngine(), tmp_path)).steps
    ]
    assert {"quantize IQ4_NL", "quantize-plain IQ4_NL", "evaluate Q4_K_M", "speed Q8_0"} <= set(labels)
    assert "quantize-plain Q8_0" not in labels, "a matrix does not change it"
    assert not {"evaluate IQ4_NL", "verify IQ4_NL", "report"} & set(labels), "it is only made"


def test_the_two_models_are_far_enough_apart_to_tell_a_start_from_growth() -> None:
    def weights(request: RandomModelRequest) -> int:
        return sum(int(np.prod(shape)) for shape in random_model_shapes(request).values())

    small, large = (weights(trial.model) for trial in TRIALS)
    assert large > 6 * small
    assert all(shape[-1] % 256 == 0 for trial in TRIALS for shape in random_model_shapes(trial.model).values())
    shared = set(TRIALS[0].made.split(",") + TRIALS[0].measured.split(","))
    assert shared & set((TRIALS[1].made + "," + TRIALS[1].measured).split(","))


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    assert random_model_bf16(np.array([1.0, -2.0, 0.0], np.float32)).tolist() == [0x3F80, 0xC000, 0]


def test_what_a_trial_of_the_matrix_takes_is_foreseen_too(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_forecast_book(
        tmp_path / "artifacts", ForecastBook(samples=[_sample("quantize", 100, cpu=cpu_name(), family="Q4_K_M")])
    )
    asked = ("plan", "--model=x", "--quants=Q4_K_M", "--suite=smoke")
    found = {}
    for imatrix in ("none", "auto"):
        assert run(_engine(), *asked, f"--imatrix={imatrix}", "--json") == 0
        found[imatrix] = json.loads(capsys.readouterr().out)["trial_seconds"]
    assert found == {"none": 0, "auto": pytest.approx(100)}, "one more file to quantize"
    assert run(_engine(), *asked, "--imatrix=auto") == 0
    assert "2 min more for IMATRIX=auto" in capsys.readouterr().out
