"""The stage `cache` on real files: what it finds of each type, what llama.cpp allocates, and what cannot be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from eval.cache import OUR_LONG_TEXT, read_cache_text
from eval.llama.cache_context import CacheRefused, cache_refused, open_cache_context
from eval.llama.context import ContextSettings
from eval.llama.model import GgufModel
from quantyard.memory.kv_cache import ContextUse, kv_bytes
from quantyard.memory.layers import read_cache_layers
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import StageResult
from quantyard.protocol.cache_results import CacheMeasurement
from quantyard.protocol.cache_types import CacheSettings
from tests import tiny_gguf
from tests.tiny_gguf import write_tiny

Demo = Callable[[str], Path]


def measured(folder: Path, model: Path, baseline: Path | None, **settings: object) -> CacheMeasurement:
    """Run the stage as the engines do."""
    request = {"label": "Q", "runtime": {"threads": 2}, "model_file": model.name, "settings": settings}
    for name, file in (("model", model), ("baseline", baseline)):
        if file is not None:
            (folder / "in" / name).mkdir(parents=True)
            (folder / "in" / name / file.name).symlink_to(file)
    request |= {"baseline_file": baseline.name} if baseline else {}
    (folder / "in" / "request.json").write_text(json.dumps(request))
    (folder / "out").mkdir()
    argv = [sys.executable, "-m", "eval.cache", "--in", str(folder / "in"), "--out", str(folder / "out")]
    done = subprocess.run(argv, cwd=REPO_DIR, env=dict(os.environ), capture_output=True, text=True, timeout=600)
    result = StageResult.model_validate_json((folder / "out" / "result.json").read_text())
    assert result.exit_code == 0, done.stderr
    return CacheMeasurement.model_validate_json((folder / "out" / "files" / "cache.json").read_text())


def test_fewer_bits_of_cache_cost_more_and_take_less(demo_gguf: Demo, tmp_path: Path) -> None:
    found = measured(tmp_path, demo_gguf("Q4_K_M"), demo_gguf("BF16"), types=["q8_0", "q4_0"], n_ctx=128, n_chunks=1,
                     prompt_tokens=8, generated_tokens=2, repeats=2)  # fmt: skip
    f16, q8, q4 = found.results
    assert (f16.type, q8.type, q4.type) == ("f16", "q8_0", "q4_0")
    assert f16.mean_kld is None and f16.prompt_speed is None and f16.baseline_kld is not None
    assert q8.mean_kld and q4.mean_kld and 0 < q8.mean_kld.value < q4.mean_kld.value
    assert q4.baseline_kld and q4.baseline_kld.value > f16.baseline_kld.value
    assert q8.top1_agreement and q8.top1_agreement.value > 0.8
    assert q8.prompt_speed and q8.generation_speed and q8.prompt_speed.low < q8.prompt_speed.high
    assert [(part.first, part.last, part.n_tokens) for part in q8.by_position] == [(1, 127, 127)]
    assert found.n_tokens == 127


@pytest.mark.parametrize(("name", "k", "v"), [("f16", 2, 2), ("q8_0", 34 / 32, 34 / 32), ("q4_0/f16", 18 / 32, 2)])
def test_what_llama_cpp_allocates_is_what_the_metadata_says(demo_gguf: Demo, name: str, k: float, v: float) -> None:
    with GgufModel.load(demo_gguf("Q4_K_M")) as model:
        context, allocated = open_cache_context(model, name, ContextSettings(4096, threads=1))
        context.close()
        layers = read_cache_layers(model.header)
    assert layers is not None
    per_token = kv_bytes(layers, ContextUse(4096)) / 4096 / 4  # elements of K, and of V
    assert (allocated.k, allocated.v) == pytest.approx((k * per_token, v * per_token), rel=1e-3)


@pytest.mark.parametrize(("architecture", "name", "reason"), [
    ("mamba", "q8_0", "NO_KV_CACHE"), ("llama", "q8_0", "HEAD_SIZE"), ("llama", "f16/q4_0", "HEAD_SIZE"),
])  # fmt: skip
def test_what_cannot_be_run_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, name: str, reason: str
) -> None:
    monkeypatch.setattr(tiny_gguf, "HEADS", 4)  # of 16 elements each
    path = write_tiny(None, tmp_path / "tiny.gguf", architecture)
    with GgufModel.load(path) as model, pytest.raises(CacheRefused) as refused:
        open_cache_context(model, name, ContextSettings(256, threads=1))
    assert refused.value.reason == reason


def test_a_model_with_sliding_windows_has_both_its_caches_counted(tmp_path: Path) -> None:
    with GgufModel.load(write_tiny(None, tmp_path / "tiny.gguf", "gemma2", window=16)) as model:
        context, allocated = open_cache_context(model, "f16", ContextSettings(4096, threads=1))
        context.close()
    assert allocated.k + allocated.v == 2 * 2 * 2 * tiny_gguf.HIDDEN  # layers, K and V, bytes, elements


@pytest.mark.parametrize(("words", "reason"), [
    ("a\nllama_init_from_model: V cache quantization requires flash_attn\n", "NO_FLASH_ATTENTION"),
    ("quantized V cache was requested, but this requires Flash Attention", "NO_FLASH_ATTENTION"),
    ("V cache type q8_0 with block size 32 does not divide n_embd_head_v=80", "HEAD_SIZE"),
    ("no more memory", "REFUSED"), ("", "REFUSED"),
])  # fmt: skip
def test_a_refusal_is_known_by_the_words_of_llama_cpp(words: str, reason: str) -> None:
    found = cache_refused(words)
    assert found.reason == reason and found.detail


def test_a_model_without_a_cache_to_quantize_is_measured_with_f16_alone(tmp_path: Path) -> None:
    path = write_tiny(None, tmp_path / "tiny.gguf", "mamba")
    found = measured(tmp_path, path, None, types=["q8_0", "q4_0/f16"], n_ctx=64, n_chunks=1, repeats=0)
    assert [(result.type, result.refusal) for result in found.results] == [
        ("f16", ""), ("q8_0", "NO_KV_CACHE"), ("q4_0/f16", "NO_KV_CACHE"),
    ]  # fmt: skip


def test_our_text_is_long_enough_for_the_longest_chunks_of_our_suites() -> None:
    text = read_cache_text(Path("/nowhere"), CacheSettings())
    assert text.name == OUR_LONG_TEXT and len(text.whole.split()) > 2 * CacheSettings().n_ctx


def test_a_model_of_short_context_is_measured_without_its_speed(tmp_path: Path) -> None:
    path = write_tiny(None, tmp_path / "tiny.gguf", context=96)
    found = measured(tmp_path, path, None, types=["q8_0"], n_chunks=1)
    assert found.n_ctx == 96 and found.settings.repeats == 0
    assert found.results[1].mean_kld is not None and found.results[1].generation_speed is None
