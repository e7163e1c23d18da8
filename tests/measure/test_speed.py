"""The stage `speed` on real files: what it reports, that nothing else is in its process, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")

from eval.llama.context import Context, ContextSettings
from eval.llama.model import GgufModel
from eval.speed import Times, _deeper_speed_tests, measure_speed, time_by_turns
from quantyard.hardware.energy import EnergyCounter, EnergyMeter
from quantyard.hardware.machine import physical_cores
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.evaluation import Runtime, SpeedSettings
from quantyard.protocol.runner import Stage
from quantyard.protocol.speed_results import Speed
from tests.tiny_gguf import write_tiny

QUIET = Stage("speed", Path("/nowhere"), Path("/nowhere"), {})
Demo = Callable[[str], Path]
Run = Callable[..., tuple[StageResult, Speed | None, list[dict[str, Any]]]]


@pytest.fixture
def run_speed(tmp_path: Path) -> Run:
    """Runs the stage as the engines do: a process, folders in and out."""

    def run(model: Path, threads: int = 1, **settings: int) -> tuple[StageResult, Speed | None, list[dict[str, Any]]]:
        (tmp_path / "in" / "model").mkdir(parents=True)
        (tmp_path / "out").mkdir()
        (tmp_path / "in" / "model" / "model.gguf").symlink_to(model)
        request = {"label": "Q", "machine": "this one", "settings": settings, "runtime": {"threads": threads}}
        (tmp_path / "in" / "request.json").write_text(json.dumps(request))
        argv = [sys.executable, "-m", "eval.speed", "--in", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        done = subprocess.run(argv, cwd=REPO_DIR, env=dict(os.environ), capture_output=True, text=True, timeout=600)
        result = StageResult.model_validate_json((tmp_path / "out" / "result.json").read_text())
        assert done.returncode == result.exit_code, done.stderr
        left = tmp_path / "out" / "files" / "speed.json"
        found = Speed.model_validate_json(left.read_text()) if left.exists() else None
        return result, found, [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.fixture(scope="module")
def tiny(demo_gguf: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(demo_gguf("BF16"), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_the_demo_model_reads_faster_than_it_writes(run_speed: Run, demo_gguf: Demo) -> None:
    path = demo_gguf("Q4_K_M")
    result, found, progress = run_speed(path, prompt_tokens=128, generated_tokens=8, repeats=2)
    assert found is not None and result.exit_code == ExitCode.DONE
    assert found.prompt_tokens_per_s > found.generated_tokens_per_s > 0
    assert found.prompt_spread >= 0 and found.generated_spread >= 0 and found.load_s > 0
    assert path.stat().st_size < found.peak_memory_bytes < path.stat().st_size + 2**29  # whatever started it takes
    assert (found.label, found.threads, found.n_ctx, found.n_gpu_layers) == ("Q", 1, 256, 0)
    assert found.settings == SpeedSettings(prompt_tokens=128, generated_tokens=8, repeats=2)
    counted = {"stage": "speed", "done": 2, "total": 2, "unit": "repeats", "what": ""}
    assert progress[-1] == {"event": "progress", **counted}
    assert result.tools["llama.cpp"].startswith("llama-cpp-python ")
    assert result.facts == {name: getattr(found, name) for name in result.facts} and len(result.facts) == 3


def test_every_physical_core_is_used_where_nothing_else_is_said(run_speed: Run, tiny: Path) -> None:
    _result, found, _progress = run_speed(tiny, threads=0, prompt_tokens=8, generated_tokens=2, repeats=1)
    assert found is not None and found.threads == physical_cores()
    assert found.prompt_spread == 0


def test_the_context_holds_prompt_and_generation(run_speed: Run, tiny: Path) -> None:
    _result, found, _progress = run_speed(tiny, prompt_tokens=700, generated_tokens=69, repeats=1)
    assert found is not None and found.n_ctx == 1024  # llama.cpp counts in steps of 256


def test_every_repeat_decodes_prompt_and_generation_after_one_warm_up(tiny: Path) -> None:
    settings, done = SpeedSettings(prompt_tokens=600, generated_tokens=6, repeats=3), []
    with GgufModel.load(tiny) as model, Context(model, ContextSettings(606, threads=1)) as context:
        times = measure_speed(context, settings, done.append)
        assert context.n_tokens_decoded == 600 + 4 + 3 * 606
    assert len(times.prompt_s) == len(times.generation_s) == 3 and done == [1, 2, 3]


def test_depths_and_batches_are_tests_of_their_own_and_the_baseline_is_timed_by_turns(tiny: Path) -> None:
    settings = SpeedSettings(prompt_tokens=64, generated_tokens=4, repeats=2, depths=(300,), batches=(32,))
    with GgufModel.load(tiny) as model:
        tests = [*_deeper_speed_tests(QUIET, model, Runtime(threads=1), settings, EnergyMeter())]
        paces = time_by_turns(model, model, Runtime(threads=1), settings)
    assert [test.name for test in tests] == [
        "pp64 @ d300", "tg4 @ d300", "pp64, ub 32", "pp64 @ d300, ub 32",
    ]  # fmt: skip
    assert all(test.interval is not None and test.tokens_per_s > 0 and test.joules_per_token is None for test in tests)
    assert all(pace is not None and pace.low < pace.high for pace in paces)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_every_repeat_finds_the_same_tokens_before_it(tmp_path: Path, architecture: str) -> None:
    settings = SpeedSettings(prompt_tokens=16, generated_tokens=4, repeats=2)
    path = write_tiny(None, tmp_path / "tiny.gguf", architecture)
    with GgufModel.load(path) as model, Context(model, ContextSettings(256, threads=1)) as context:
        measure_speed(context, settings, lambda _: None, depth=100)
        filled = 1 if not model.has_states else 2 + 2 * 2  # before each run of prompt and generation
        assert context.n_tokens_decoded == filled * 100 + 16 + 4 + 2 * (16 + 4)


def test_energy_is_read_around_each_repeat(tiny: Path) -> None:
    readings = iter(range(1000))
    meter = EnergyMeter((EnergyCounter("fake", lambda: 8.0 * next(readings)),))
    settings = SpeedSettings(prompt_tokens=4, generated_tokens=2, repeats=3)
    with GgufModel.load(tiny) as model, Context(model, ContextSettings(256, threads=1)) as context:
        prompt, generation = measure_speed(context, settings, lambda _: None, meter).tests(settings)
    assert (prompt.joules_per_token, generation.joules_per_token) == (2.0, 4.0)
    assert prompt.joules_interval is not None and prompt.joules_interval.low == prompt.joules_interval.high == 2.0


def test_speeds_are_medians_and_spreads_their_range() -> None:
    found = Times((1.0, 2.0, 4.0), (0.5, 0.5, 0.5)).speeds(SpeedSettings(prompt_tokens=8, generated_tokens=3))
    assert found == {
        "prompt_tokens_per_s": 4.0, "generated_tokens_per_s": 6.0, "prompt_spread": 1.5, "generated_spread": 0.0,
    }


def test_a_model_of_few_tokens_is_timed_with_as_many_as_it_was_trained_for(run_speed: Run, tmp_path: Path) -> None:
    short = write_tiny(None, tmp_path / "short.gguf", context=96)
    _result, found, _progress = run_speed(short, prompt_tokens=512, generated_tokens=8, repeats=1)
    assert found is not None
    assert (found.settings.prompt_tokens, found.settings.generated_tokens) == (96, 8)


def test_a_file_that_is_no_gguf_is_refused(run_speed: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"PK\x03\x04" * 100)
    result, _found, _progress = run_speed(tmp_path / "bad.gguf")
    assert result.exit_code == ExitCode.BAD_REQUEST
    assert result.error is not None and result.error.kind == "bad-gguf"


def test_nothing_heavy_is_imported_that_would_count_as_the_models_memory() -> None:
    code = "import sys, eval.speed; print([n for n in {heavy} if n in sys.modules])"
    code = code.format(heavy=("lm_eval", "torch", "transformers", "datasets", "scipy", "matplotlib"))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_DIR, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
