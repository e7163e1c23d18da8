"""Models of random weights whose logits spread as a trained model's do, of three architectures of llama.cpp.

Differences between two ways to compute them then have the size that they have in practice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import gguf
import numpy as np

Architecture = Literal["llama", "qwen3", "gemma3"]
Q8_0: Final = 7  # its number in llama.h, enum llama_ftype
Q4_K_M: Final = 15
_WIDTH, _LAYERS, _HEAD, _WINDOW = 384, 4, 64, 32
_SPREAD: Final = 4.0  # standard deviation of the logits


def write_random_model(vocabulary: Path, path: Path, kind: Architecture, seed: int = 3) -> None:
    """Write one in F16, with the tokens of `vocabulary`."""
    writer = gguf.GGUFWriter(path, kind)
    n_vocab = _copy_tokenizer(vocabulary, writer)
    for add, value in (
        (writer.add_context_length, 4096), (writer.add_embedding_length, _WIDTH), (writer.add_block_count, _LAYERS),
        (writer.add_feed_forward_length, 3 * _WIDTH), (writer.add_head_count, _WIDTH // _HEAD),
        (writer.add_head_count_kv, _WIDTH // _HEAD // 2), (writer.add_rope_dimension_count, _HEAD),
        (writer.add_key_length, _HEAD), (writer.add_value_length, _HEAD), (writer.add_vocab_size, n_vocab),
        (writer.add_file_type, 1),
    ):  # fmt: skip
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    if kind == "gemma3":
        writer.add_sliding_window(_WINDOW)
    random = np.random.default_rng(seed)
    for name, shape in _tensors(kind, n_vocab):
        writer.add_tensor(name, _weights(random, kind, name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize_random_model(source: Path, target: Path, ftype: int) -> None:
    """Quantize it, by llama.cpp."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


def _tensors(kind: Architecture, n_vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    half = _WIDTH // 2
    matrices = {
        "attn_q": (_WIDTH, _WIDTH), "attn_k": (half, _WIDTH), "attn_v": (half, _WIDTH), "attn_output": (_WIDTH, _WIDTH),
        "ffn_gate": (3 * _WIDTH, _WIDTH), "ffn_up": (3 * _WIDTH, _WIDTH), "ffn_down": (_WIDTH, 3 * _WIDTH),
    }  # fmt: skip
    norms = ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if kind == "gemma3" else ()))
    yield "token_embd.weight", (n_vocab, _WIDTH)
    for layer in range(_LAYERS):
        yield from ((f"blk.{layer}.{name}.weight", shape) for name, shape in matrices.items())
        yield from ((f"blk.{layer}.{name}.weight", (_WIDTH,)) for name in norms)
        if kind != "llama":
            yield from ((f"blk.{layer}.attn_{name}_norm.weight", (_HEAD,)) for name in "qk")
    yield "output_norm.weight", (_WIDTH,)
    yield "output.weight", (n_vocab, _WIDTH)


def _weights(random: np.random.Generator, kind: Architecture, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    scale = (_SPREAD if name == "output.weight" else 1.0) / np.sqrt(shape[1])
    if name == "token_embd.weight" and kind != "gemma3":  # Gemma scales its embeddings by √width itself
        scale = 1.0
    return (random.standard_normal(shape, np.float32) * np.float32(scale)).astype(np.float16)


def _copy_tokenizer(vocabulary: Path, writer: gguf.GGUFWriter) -> int:
    """Copy the tokenizer's metadata; returns the number of tokens."""
    n_vocab = 0
    for field in gguf.GGUFReader(vocabulary).fields.values():
        if not field.name.startswith("tokenizer.") or field.name == "tokenizer.chat_template":
            continue
        value = field.contents()
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, value)
            n_vocab = max(n_vocab, len(value)) if field.name == "tokenizer.ggml.tokens" else n_vocab
        else:
            writer.add_key_value(field.name, value, field.types[0])
    return n_vocab
