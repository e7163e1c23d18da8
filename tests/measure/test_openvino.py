"""The stage `openvino` on the demo's files, with OpenVINO itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")

from quantyard.paths import REPO_DIR
from quantyard.protocol.base import StageResult
from quantyard.protocol.openvino_results import OpenVinoMeasurement

pytestmark = pytest.mark.slow
PYTHON = REPO_DIR / ".venv-openvino/bin/python"
Demo = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def _openvino() -> None:
    """Set up once, as ENGINE=local does; 85 MB to download."""
    subprocess.run([str(REPO_DIR / "scripts/setup-venv.sh"), "openvino", str(PYTHON.parents[1])], check=True)


def measured(folder: Path, model: Path, baseline: Path) -> OpenVinoMeasurement:
    """Run the stage as the engine does."""
    settings = {"n_ctx": 128, "n_chunks": 2, "generated_tokens": 4}
    request = {
        "label": "Q", "runtime": {"threads": 2}, "model_file": model.name, "baseline_file": baseline.name,
        "settings": settings,
    }  # fmt: skip
    for name, file in (("model", model), ("baseline", baseline)):
        (folder / "in" / name).mkdir(parents=True)
        (folder / "in" / name / file.name).symlink_to(file)
    (folder / "in" / "request.json").write_text(json.dumps(request))
    (folder / "out").mkdir()
    argv = [sys.executable, "-m", "eval.openvino", "--in", str(folder / "in"), "--out", str(folder / "out")]
    env = dict(os.environ) | {"OPENVINO_PYTHON": str(PYTHON)}
    done = subprocess.run(argv, cwd=REPO_DIR, env=env, capture_output=True, text=True, timeout=600)
    result = StageResult.model_validate_json((folder / "out" / "result.json").read_text())
    assert result.exit_code == 0, done.stderr
    return OpenVinoMeasurement.model_validate_json((folder / "out" / "files" / "openvino.json").read_text())


def test_a_file_of_8_bits_is_close_to_itself_in_both_runtimes(demo_gguf: Demo, tmp_path: Path) -> None:
    found = measured(tmp_path, demo_gguf("Q8_0"), demo_gguf("BF16"))
    assert found.refusal == "" and found.n_tokens == 126
    assert found.runtime_kld and found.baseline_kld and found.llama_kld
    assert max(found.runtime_kld.value, found.baseline_kld.value, found.llama_kld.value) < 0.02
    assert found.weight_bytes["u8"] > found.weight_bytes["f16"] and found.computes["KV_CACHE_PRECISION"] == "u8"
    assert found.prompt_tokens_per_s and found.generated_tokens_per_s and found.greedy_same is not None
    assert set(found.versions) == {"openvino", "openvino-genai"}


@pytest.mark.parametrize("quant", ["Q4_K_M", "BF16"])
def test_a_file_whose_types_it_does_not_read_has_a_named_reason(demo_gguf: Demo, tmp_path: Path, quant: str) -> None:
    found = measured(tmp_path, demo_gguf(quant), demo_gguf("BF16"))
    assert found.refusal == "TENSOR_TYPE" and found.detail and found.baseline_kld is None
