"""A llama of one thin layer in Hugging Face format, and safetensors of random weights."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_tiny_model(folder: Path, demo_model: Path) -> Path:
    """Random weights and the demo's tokenizer: converts in seconds, 7 MB. With a negative last norm, the word that was
    just said is the unlikeliest to follow, which is all that the self-check of an evaluation asks of so small a model.
    """
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (demo_model / name).exists():
            shutil.copy(demo_model / name, folder / name)
    config = json.loads((demo_model / "config.json").read_text())
    config |= {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tiny_shapes(config), {"model.norm.weight": -1.0})
    return folder


def tiny_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the tiny model."""
    hidden, wide, kv = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,),
        layer + "input_layernorm.weight": (hidden,), layer + "post_attention_layernorm.weight": (hidden,),
        layer + "self_attn.q_proj.weight": (hidden, hidden), layer + "self_attn.k_proj.weight": (kv, hidden),
        layer + "self_attn.v_proj.weight": (kv, hidden), layer + "self_attn.o_proj.weight": (hidden, hidden),
        layer + "mlp.gate_proj.weight": (wide, hidden), layer + "mlp.up_proj.weight": (wide, hidden),
        layer + "mlp.down_proj.weight": (hidden, wide),
    }


def zero_safetensors(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of BF16 zeros with these tensors."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], constant: dict[str, float] | None = None, seed: int = 7
) -> None:
    """Random bfloat16 tensors of these shapes, as one safetensors file; those that are named `constant`, of one value
    each.
    """
    import numpy as np

    rng, header, blocks, at = np.random.default_rng(seed), {}, [], 0
    for name, shape in shapes.items():
        values = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        if constant and name in constant:
            values[...] = constant[name]
        block = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + len(block)]}
        blocks.append(block)
        at += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))
