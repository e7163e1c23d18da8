"""The API test sees whether a server says what was measured: the demo model behind the server of ENGINE=local."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import httpx2
import pytest

from eval.llama.model import GgufModel
from eval.llama.predictions import file_predictions
from quantyard.paths import REPO_DIR
from quantyard.protocol.api_tests import LocalModel, LocalServerSettings
from quantyard.protocol.cache_types import CacheName
from quantyard.protocol.predictions import N_LIKELIEST, N_PREDICTED, PREDICTION_PROMPTS, FilePredictions
from server.api_checks.launch import Wire, free_loopback_port
from server.api_checks.outcome import CheckOutcome
from server.api_checks.predictions import check_predictions
from server.api_checks.session import ApiSession
from tests.docker.server import wait_for
from tests.random_models import Q4_K_M, Q8_0, Architecture, quantize_random_model, write_random_model

KEY = "key-of-the-test"


@pytest.fixture(scope="module")
def measured(demo_gguf: Callable[[str], Path]) -> FilePredictions:
    with GgufModel.load(demo_gguf("Q8_0")) as model:
        found = file_predictions(model, threads=1)
    assert found is not None
    return found


@contextmanager
def served(gguf: Path, folder: Path, cache_type: CacheName) -> Iterator[Wire]:
    port, settings = free_loopback_port(), folder / "server.json"
    models = (LocalModel(path=gguf, name="demo"),)
    given = LocalServerSettings(
        port=port, key=KEY, models=models, context_size=1024, parallel=1, threads=1, cache_type=cache_type
    )
    settings.write_text(given.model_dump_json())
    argv = [sys.executable, "-P", "-m", "server.local.server", str(settings)]
    process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(REPO_DIR)})
    wire = Wire(f"http://127.0.0.1:{port}", KEY, 120)
    try:
        wait_for(lambda: _is_up(wire), 120)
        yield wire
    finally:
        process.terminate()
        process.wait(20)


def _is_up(wire: Wire) -> bool:
    try:
        return wire.get("/health").status == 200
    except httpx2.TransportError:
        return False


def test_every_prompt_is_measured_with_its_likeliest_tokens(measured: FilePredictions) -> None:
    assert len(measured.prompts) == len(PREDICTION_PROMPTS)
    for prompt in measured.prompts:
        assert len(prompt.places) == N_PREDICTED
        for place in prompt.places:
            assert len(place.tokens) == len(set(place.tokens)) == N_LIKELIEST
            assert list(place.logprobs) == sorted(place.logprobs, reverse=True) and place.logprobs[0] < 0


@pytest.mark.parametrize(("cache_type", "quant", "status"), [
    ("f16", "Q8_0", "passed"), ("q4_0", "Q8_0", "failed"), ("f16", "Q4_K_M", "failed"),
])  # fmt: skip
def test_another_cache_and_another_file_are_seen_and_another_build_is_told(
    measured: FilePredictions, demo_gguf: Callable[[str], Path], tmp_path: Path, cache_type: CacheName, quant: str,
    status: str,
) -> None:  # fmt: skip
    found = _compared(measured, demo_gguf(quant), tmp_path, cache_type)
    assert found.status == status, found.finding
    assert f"of {found.facts['n_places']} tokens" in found.finding
    assert status == "failed" or found.facts["agreement"] == 1


def _compared(measured: FilePredictions, gguf: Path, folder: Path, cache_type: CacheName) -> CheckOutcome:
    with served(gguf, folder, cache_type) as wire:
        return check_predictions(ApiSession(wire, measured=measured))


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(Architecture))
def test_the_limits_hold_for_other_architectures(
    kind: Architecture, demo_gguf: Callable[[str], Path], tmp_path: Path
) -> None:
    """An f16 and an 8-bit cache pass, a 4-bit cache and another file do not; Gemma 3 has windows."""
    source, files = tmp_path / "source.gguf", {"Q8_0": tmp_path / "q8.gguf", "Q4_K_M": tmp_path / "q4.gguf"}
    write_random_model(demo_gguf("BF16"), source, kind)
    quantize_random_model(source, files["Q8_0"], Q8_0)
    quantize_random_model(source, files["Q4_K_M"], Q4_K_M)
    with GgufModel.load(files["Q8_0"]) as model:
        predicted = file_predictions(model, threads=1)
    assert predicted is not None
    cases: list[tuple[CacheName, str]] = [("f16", "Q8_0"), ("q8_0", "Q8_0"), ("q4_0", "Q8_0"), ("f16", "Q4_K_M")]
    found = [_compared(predicted, files[quant], tmp_path, cache) for cache, quant in cases]
    assert [one.status for one in found] == ["passed", "passed", "failed", "failed"], [one.finding for one in found]


def test_a_file_that_was_not_measured_is_not_compared() -> None:
    found = check_predictions(ApiSession(Wire("http://127.0.0.1:1", None)))
    assert found.status == "not supported" and "make eval" in found.finding
