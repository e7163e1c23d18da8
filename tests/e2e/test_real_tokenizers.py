"""Models with the tokenizers that people use, through the command line; the weights are random and tiny."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import run_here, run_json
from tests.real_tokenizers import write_family
from tests.tiny_model import tiny_shapes, write_safetensors


def _with_weights(folder: Path, **config: object) -> Path:
    """Add the weights of one thin layer to a family's tokenizer."""
    path = folder / "config.json"
    thin = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    said = json.loads(path.read_bytes()) | {"tie_word_embeddings": True, "torch_dtype": "bfloat16", **thin, **config}
    path.write_text(json.dumps(said))
    norms = {f"model.layers.0.self_attn.{name}_norm.weight": (32,) for name in ("q", "k")}
    shapes = tiny_shapes(said) | (norms if said["model_type"] == "qwen3" else {})
    write_safetensors(folder / "model.safetensors", shapes, {"model.norm.weight": -1.0})
    return folder


def test_a_qwen3_with_its_real_tokenizer_builds_with_no_permission(engine: str, tmp_path: Path) -> None:
    model = _with_weights(write_family("qwen3", tmp_path / "Qwen3-tiny"), model_type="qwen3")
    asked = {"MODEL": str(model), "QUANT": "Q8_0", "ENGINE": engine, "ARTIFACTS": str(tmp_path / "artifacts")}
    made = run_json("build", **asked, PARITY="twin")
    assert made["twin"]["status"] == "proved", made["twin"]["finding"]
    facts = json.loads(Path(made["manifest"]).read_text())["stages"]["verify Q8_0"]["facts"]
    assert facts["reference"].startswith("tokenizer.json (tokenizers ")
    found = {finding["kind"]: finding["outcome"] for finding in facts["findings"]}
    assert found == {"normalization": "record", "sentinel-tokens": "record"}
    assert facts["added_tokens"] == 26 and facts["running_text_tokens"] > 5000 and facts["chats"] > 0


def test_a_sentencepiece_model_without_tokenizer_model_is_refused_at_the_plan(
    some_engine: str, tmp_path: Path
) -> None:
    model = _with_weights(write_family("llama-2", tmp_path / "llama-tiny"), model_type="llama")
    (model / "tokenizer.model").unlink()
    asked = {"MODEL": str(model), "QUANT": "Q8_0", "ENGINE": some_engine, "ARTIFACTS": str(tmp_path / "artifacts")}
    done = run_here("plan", **asked)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, said
    assert "no tokenizer.model" in said and "Copy tokenizer.model" in said
