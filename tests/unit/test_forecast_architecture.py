"""A time of one architecture is not taken for that of another, unless the plan says so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from quantyard.cli.json_outputs.building import plan_output
from quantyard.cli.render import build as summary
from quantyard.execution.scheduler import Taken
from quantyard.forecast.architecture import OTHER_MEMORY, SAME_MEMORY, plain_architecture, work_of_source
from quantyard.forecast.cost import forecast_cost
from quantyard.forecast.expected_times import StepTime
from quantyard.forecast.from_manifests import known_forecast_times
from quantyard.forecast.samples import ForecastBook
from quantyard.forecast.time import forecast_times, learn_forecast_times
from quantyard.forecast.work import ForecastWork
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.evaluation import SpeedRequest
from quantyard.sources.resolve import Source
from quantyard.workflows.results import Planned
from tests.manifests import manifest_of
from tests.unit.conftest import MakeMeasured
from tests.unit.fake_engine import FakeEngine
from tests.unit.test_forecast_time import ALONE, _sample

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "sliding_window": None}
MISTRAL = {"architectures": ["MistralForCausalLM"], "sliding_window": 4096}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32768, "use_sliding_window": False}
GEMMA3 = {"architectures": ["Gemma3ForConditionalGeneration"],
          "text_config": {"model_type": "gemma3_text", "sliding_window": 512}}  # fmt: skip
MAMBA = {"architectures": ["MambaForCausalLM"], "state_size": 16}
JAMBA = {"architectures": ["JambaForCausalLM"], "mamba_d_state": 16, "attn_layer_period": 8}
LFM2 = {"architectures": ["Lfm2ForCausalLM"], "conv_L_cache": 3}


@pytest.fixture
def plan(local_source: Source, measured: MakeMeasured) -> BuildPlan:
    return measured(local_source, FakeEngine(), "Q4_K_M,Q8_0").plan


def _of(plan: BuildPlan, config: Mapping[str, object]) -> BuildPlan:
    """The plan of a model with this config.json."""
    return replace(plan, source=replace(plan.source, config=config))


def _speed_of(plan: BuildPlan, *samples: object) -> StepTime:
    return forecast_times(plan, (), ForecastBook(samples=list(samples)), ALONE).steps["speed Q8_0"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "architecture", "memory"),
    [(LLAMA, "llama", "cells"), (MISTRAL, "mistral", "window"), (QWEN2, "qwen2", "cells"), (GEMMA3, "gemma3", "window"),
     (MAMBA, "mamba", "states"), (JAMBA, "jamba", "states"), (LFM2, "lfm2", "states"), ({}, "", "")],
)  # fmt: skip
def test_what_decodes_knows_its_architecture_and_its_memory(
    local_source: Source, config: Mapping[str, object], architecture: str, memory: str
) -> None:
    source = replace(local_source, config=config)
    found = work_of_source(ForecastWork("evaluate", 1), source)
    assert (found.architecture, found.memory) == (architecture, memory)
    quantizing = ForecastWork("quantize", 1)
    assert work_of_source(quantizing, source) == quantizing, "weights are quantized alike"


@pytest.mark.parametrize(
    ("of_class", "of_gguf"),
    [("LlamaForCausalLM", "llama"), ("FalconH1ForCausalLM", "falcon-h1"), ("Gemma3ForConditionalGeneration", "gemma3"),
     ("Qwen3MoeForCausalLM", "qwen3moe"), ("T5ForConditionalGeneration", "t5"), ("GPT2LMHeadModel", "gpt2")],
)  # fmt: skip
def test_a_model_and_its_gguf_have_one_name(of_class: str, of_gguf: str) -> None:
    assert plain_architecture(of_class) == plain_architecture(of_gguf)


def test_its_own_architecture_counts_and_not_what_another_took(plan: BuildPlan) -> None:
    plan = _of(plan, GEMMA3)
    own = _sample("speed", 40, family="Q4_K_M", engine="local", architecture="gemma3", memory="window")
    other = _sample("speed", 8, family="Q8_0", architecture="llama", memory="cells")
    found = _speed_of(plan, own, other)
    assert found == replace(_speed_of(plan, own), rough=True) and found.times == 1


@pytest.mark.parametrize(("of", "times"), [(MISTRAL, SAME_MEMORY), (MAMBA, OTHER_MEMORY), (LLAMA, OTHER_MEMORY)])
def test_what_another_architecture_took_is_a_range(plan: BuildPlan, of: Mapping[str, object], times: float) -> None:
    plan = _of(plan, of)
    found = _speed_of(plan, _sample("speed", 8, family="Q8_0", architecture="gemma3", memory="window"))
    assert found.rough and found.times == times and found.most_seconds == times * found.seconds


def test_of_other_architectures_those_with_the_same_memory_count(plan: BuildPlan) -> None:
    plan = _of(plan, MAMBA)
    states = _sample("speed", 30, family="Q8_0", architecture="jamba", memory="states")
    cells = _sample("speed", 8, family="Q8_0", architecture="llama", memory="cells")
    assert _speed_of(plan, states, cells) == _speed_of(plan, states)
    assert _speed_of(plan, states, cells).times == SAME_MEMORY


def test_what_nobody_knows_the_architecture_of_is_taken_for_its_own(plan: BuildPlan) -> None:
    """A book of an earlier version, or a source without a config.json."""
    unknown = _sample("speed", 8, family="Q8_0")
    known = _sample("speed", 8, family="Q8_0", architecture="gemma3", memory="window")
    assert _speed_of(_of(plan, GEMMA3), unknown).times == 1 and _speed_of(plan, known).times == 1


def test_a_run_teaches_its_architecture(plan: BuildPlan) -> None:
    plan, book = _of(plan, LFM2), ForecastBook()
    learn_forecast_times(book, plan, [Taken("speed Q8_0", "k", 9.0), Taken("convert", "c", 3.0)], ALONE)
    found = {sample.kind: (sample.architecture, sample.memory) for sample in book.samples}
    assert found == {"speed": ("lfm2", "states"), "convert": ("", "")}


def test_a_manifest_tells_the_architecture(tmp_path: Path) -> None:
    manifest = manifest_of().model_dump(mode="json")
    plain = manifest["stages"]["quantize Q4_K_M"]
    convert = plain | {"facts": {"n_params": 1000, "architecture": "Gemma3ForConditionalGeneration"}, "key": "1" * 64}
    request = SpeedRequest(label="Q8_0").model_dump(mode="json")
    later = {"request": request, "facts": {}, "key": "2" * 64, "finished_at": "2026-11-22T18:00:00Z"}
    manifest["stages"] = {"convert": convert, "speed": plain | later}
    folder = tmp_path / "org" / "m" / "abc"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = {sample.kind: sample.architecture for sample in known_forecast_times(tmp_path).all_samples}
    assert found["speed"] == "gemma3"


def test_the_plan_says_the_range(plan: BuildPlan, tmp_path: Path) -> None:
    plan = _of(plan, MAMBA)
    other = _sample("speed", 20, family="Q8_0", architecture="llama", memory="cells")
    book = ForecastBook(samples=[other, _sample("convert", 10)])
    cost = forecast_cost(plan, (), 0, tmp_path, forecast_times(plan, (), book, ALONE))
    planned = Planned(plan, frozenset(), cost, "docker", "asked for", tmp_path)
    text, said = summary.terminal_plan(planned), plan_output(planned)
    assert "a range from another architecture" in text
    assert re.search(r"speed Q8_0, ~\S+ \w+ to \S+ \w+", text)
    speeds = [stage for stage in said.stages if stage.label.startswith("speed")]
    assert all(stage.most_seconds == pytest.approx(OTHER_MEMORY * (stage.seconds or 0)) for stage in speeds)
    assert said.most_seconds is not None and said.seconds is not None and said.most_seconds > said.seconds
