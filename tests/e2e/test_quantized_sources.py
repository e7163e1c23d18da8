"""Sources that are quantized already, with the real converter: the GGUF holds the weights that they stand for, and has
the size that the plan said.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quantyard.formats.gguf import read_gguf_model
from tests.conftest import NO_TWIN, run, run_json
from tests.quantized_folders import FORMS, Array, quantize_folder

ROWS = {
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
}
SLOW = [form for form in FORMS if form != "gptq"]


def _held(path: Path, name: str) -> Array:
    """The weights of a BF16 tensor of a GGUF."""
    tensor = next(tensor for tensor in read_gguf_model(path).tensors if tensor.name == name)
    assert tensor.type.name == "BF16"
    with path.open("rb") as stream:
        stream.seek(tensor.offset)
        stored = np.frombuffer(stream.read(tensor.size_bytes), np.uint16)
    return (stored.astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape[::-1])


@pytest.mark.parametrize("form", ["gptq", *(pytest.param(form, marks=pytest.mark.slow) for form in SLOW)])
def test_a_quantized_source_is_built_as_the_weights_that_it_stands_for(
    form: str, some_engine: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "quantized"))
    plain = quantize_folder(model, FORMS[form])
    asked = {"MODEL": str(model), "ENGINE": some_engine, "ARTIFACTS": str(tmp_path / "artifacts"), **NO_TWIN}
    planned = run_json("plan", QUANT="BF16", **asked)
    made = run_json("build", QUANT="BF16", **asked)
    gguf = Path(made["files"][0]["path"])
    for name, ours in ROWS.items():
        assert np.allclose(_held(gguf, ours), plain[name], rtol=2**-8, atol=1e-6)
    assert abs(planned["files"][0]["size_bytes"] / gguf.stat().st_size - 1) < 0.02
    manifest = json.loads(Path(made["manifest"]).read_text())
    is_stale = form == "stale"
    assert manifest["stages"]["convert"]["facts"]["lossless"] == is_stale
    assert ("quantization" in manifest["source"]) != is_stale
    refused = run("build", QUANT="Q8_0", **asked)
    assert refused.returncode == (0 if is_stale else 2), refused.stderr
    assert is_stale or "ALLOW_REQUANTIZE=1" in refused.stderr
