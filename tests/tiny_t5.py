"""Small encoder-decoders in Hugging Face format: T5 1.0, T5 1.1 and FLAN-T5, MADLAD, mT5 and UMT5, of random weights.

Configs are those of the Hub, with small numbers. The tokenizer is a real SentencePiece model, trained in a second on
the calibration text; so `sentencepiece` has to be there.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

from builder.imatrix.calibration_text import OUR_TEXT
from quantyard.paths import local_venv_path
from tests.tiny_model import write_safetensors

WIDTH, WIDE, HEADS, HEAD, VOCABULARY = 64, 96, 4, 16, 1024
PIECES, SENTINELS = 900, 100
_COMMON: Final[dict[str, Any]] = {
    "d_model": WIDTH, "d_ff": WIDE, "d_kv": HEAD, "num_heads": HEADS, "num_layers": 2, "num_decoder_layers": 2,
    "vocab_size": VOCABULARY, "is_encoder_decoder": True, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 1, "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-06, "dropout_rate": 0.1,
    "initializer_factor": 1.0, "use_cache": True, "torch_dtype": "float32",
}  # fmt: skip
_GATED: Final[dict[str, Any]] = {
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "relative_attention_max_distance": 128,
}  # fmt: skip
_NAMED: Final = {"tokenizer_class": "T5Tokenizer", **_GATED}
# What sets the families apart in their config.json.
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "t5": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "n_positions": 512},
    "flan-t5": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "n_positions": 512, **_GATED},
    "madlad": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **_GATED},
    "mt5": {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5", **_NAMED},
    "umt5": {"architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5", **_NAMED},
}  # fmt: skip


def write_tiny_t5(folder: Path, family: str = "flan-t5") -> Path:
    """Write a model of this family, about 1 MB."""
    folder.mkdir(parents=True)
    config = _COMMON | FAMILIES[family]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {name: config[name] for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    shapes = dict(_shapes(config))
    norms = {name: 1.0 for name in shapes if "norm" in name}
    norms["decoder.final_layer_norm.weight"] = 8.0 if "lm_head.weight" in shapes else 64.0  # logits that differ
    write_safetensors(folder / "model.safetensors", shapes, norms)
    _write_tokenizer(folder)
    return folder


def _shapes(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    shapes: list[tuple[str, tuple[int, ...]]] = [("shared.weight", (VOCABULARY, WIDTH))]
    for side, n_layers in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        for at in range(n_layers):
            shapes += _layer(f"{side}.block.{at}.layer", config, at, with_cross=side == "decoder")
        shapes.append((f"{side}.final_layer_norm.weight", (WIDTH,)))
    if config.get("tie_word_embeddings") is False:
        shapes.append(("lm_head.weight", (VOCABULARY, WIDTH)))
    return shapes


def _layer(name: str, config: dict[str, Any], at: int, *, with_cross: bool) -> list[tuple[str, tuple[int, ...]]]:
    attentions = ["SelfAttention", *(["EncDecAttention"] if with_cross else [])]
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for number, attention in enumerate(attentions):
        shapes += [(f"{name}.{number}.{attention}.{part}.weight", (HEADS * HEAD, WIDTH)) for part in "qkv"]
        shapes.append((f"{name}.{number}.{attention}.o.weight", (WIDTH, HEADS * HEAD)))
        shapes.append((f"{name}.{number}.layer_norm.weight", (WIDTH,)))
    if at == 0 or config["model_type"] == "umt5":
        buckets = config["relative_attention_num_buckets"]
        shapes.append((f"{name}.0.SelfAttention.relative_attention_bias.weight", (buckets, HEADS)))
    dense, gates = len(attentions), ("wi_0", "wi_1") if "feed_forward_proj" in config else ("wi",)
    shapes += [(f"{name}.{dense}.DenseReluDense.{gate}.weight", (WIDE, WIDTH)) for gate in gates]
    shapes.append((f"{name}.{dense}.DenseReluDense.wo.weight", (WIDTH, WIDE)))
    shapes.append((f"{name}.{dense}.layer_norm.weight", (WIDTH,)))
    return shapes


def _write_tokenizer(folder: Path) -> None:
    import sentencepiece

    text = folder / "text"
    text.write_text("\n".join(json.loads(line)["text"] for line in OUR_TEXT.read_text().splitlines() if "text" in line))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), model_type="unigram", vocab_size=PIECES, num_threads=1,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, max_sentence_length=100_000, minloglevel=2,
    )  # fmt: skip
    for name in ("text", "spiece.vocab"):
        (folder / name).unlink()
    sentinels = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "extra_ids": SENTINELS, "additional_special_tokens": sentinels, "model_max_length": 512, "legacy": True,
    }))  # fmt: skip


def convert_tiny_t5(folder: Path, path: Path, python: str, outtype: str = "f32") -> Path:
    """Convert a model with the converter of ENGINE=local, run by a Python that has its dependencies."""
    converter = local_venv_path({}) / "share" / "llama.cpp" / "convert_hf_to_gguf.py"
    argv = [python, "-B", str(converter), str(folder), "--outfile", str(path), "--outtype", outtype]
    subprocess.run(argv, check=True, capture_output=True, timeout=300, env={"PATH": "/usr/bin:/bin", "HOME": "/tmp"})
    return path
