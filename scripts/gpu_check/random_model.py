#!/usr/bin/env python3
"""Writes a llama with random weights, in F16 and in Q4_K_M: something to compute where no model can be downloaded.

Its tokens are those of one of llama.cpp's vocabulary files. The logits spread by about 4, as a trained model's do, so
that a divergence between two backends has the size that it has in practice.

Usage:  random_model.py VOCABULARY.gguf FOLDER [--millions 1000]
"""

# ruff: noqa: T201  (it is a script)
from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

HEAD, CONTEXT = 64, 4096
Q4_K_M: Final = 15  # its number in llama.h, enum llama_ftype
_SPREAD: Final = 4.0  # standard deviation of the logits
_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def random_model_shape(millions: int, n_vocab: int) -> tuple[int, int]:
    """Width and layers of the smallest llama of at least so many million weights; the layers grow with the width."""
    for width in range(256, 8192, 256):
        layers = max(2, width // 80)
        if 2 * n_vocab * width + layers * 11 * width * width >= millions * 1e6:
            return width, layers
    raise ValueError(f"{millions} million weights are more than this makes")


def write_random_model(vocabulary: Path, path: Path, millions: int) -> None:
    """Write it in F16; a tensor at a time, so that memory stays small."""
    import gguf

    reader, writer = gguf.GGUFReader(vocabulary), gguf.GGUFWriter(path, "llama")
    n_vocab = _copy_tokens(reader, writer)
    width, layers = random_model_shape(millions, n_vocab)
    for add, value in (
        (writer.add_context_length, CONTEXT), (writer.add_embedding_length, width), (writer.add_block_count, layers),
        (writer.add_feed_forward_length, 3 * width), (writer.add_head_count, width // HEAD),
        (writer.add_head_count_kv, width // HEAD // 2), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_dimension_count, HEAD), (writer.add_vocab_size, n_vocab), (writer.add_file_type, 1),
        (writer.add_chat_template, _TEMPLATE),
    ):  # fmt: skip
        add(value)
    shapes = dict(_random_model_tensors(width, layers, n_vocab))
    for name, shape in shapes.items():
        kind = np.float32 if len(shape) == 1 else np.float16
        n_bytes = int(np.prod(shape)) * np.dtype(kind).itemsize
        writer.add_tensor_info(name, shape, np.dtype(kind), n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.write_tensor_data(_random_tensor(random, name, shape))
    writer.close()


def quantize_random_model(source: Path, target: Path) -> None:
    """Make the Q4_K_M of it, by llama.cpp."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = Q4_K_M
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp cannot quantize {source}")


def _random_model_tensors(width: int, layers: int, n_vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (n_vocab, width)
    for layer in range(layers):
        for name, rows, columns in (
            ("attn_q", width, width), ("attn_k", width // 2, width), ("attn_v", width // 2, width),
            ("attn_output", width, width), ("ffn_gate", 3 * width, width), ("ffn_up", 3 * width, width),
            ("ffn_down", width, 3 * width),
        ):  # fmt: skip
            yield f"blk.{layer}.{name}.weight", (rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (width,)
    yield "output_norm.weight", (width,)
    yield "output.weight", (n_vocab, width)


def _random_tensor(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    # A row times a normalized hidden state has the standard deviation of the row times √columns.
    scale = _SPREAD / np.sqrt(shape[1]) if name == "output.weight" else 1 / np.sqrt(shape[1])
    values = random.standard_normal(shape, np.float32)
    values *= np.float32(1.0 if name == "token_embd.weight" else scale)
    return values.astype(np.float16)


def _copy_tokens(reader: Any, writer: Any) -> int:
    """Copy the tokenizer's metadata; returns the number of tokens."""
    import gguf

    n_vocab = 0
    for field in reader.fields.values():
        if not field.name.startswith("tokenizer.") or field.name == "tokenizer.chat_template":
            continue
        kind, value = field.types[0], field.contents()
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, value)
            n_vocab = max(n_vocab, len(value)) if field.name == "tokenizer.ggml.tokens" else n_vocab
        else:
            writer.add_key_value(field.name, value, kind)
    return n_vocab


def main() -> None:
    """Parse the arguments and write both files."""
    parser = argparse.ArgumentParser(description="Writes a llama with random weights.")
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--millions", type=int, default=1000)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    write_random_model(args.vocabulary, args.folder / "random-F16.gguf", args.millions)
    quantize_random_model(args.folder / "random-F16.gguf", args.folder / "random-Q4_K_M.gguf")
    for path in sorted(args.folder.glob("random-*.gguf")):
        print(f"{path.name}  {path.stat().st_size / 1e6:,.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
