"""Writes a tiny model of zeros with the vocabulary and chat template of another model, to test the template alone.

llama-server renders the chat template while it starts. With the real model, a template that hangs or uses up all
memory looks like a large model that is still loading. The tiny model loads at once, so that limits of time and memory
can be set for the template.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from quantyard.formats.gguf import GgufHeader
from quantyard.formats.gguf_values import GgufArray, MetadataValue

_WIDTH: Final = 32  # weights in a row
_Q4_0: Final = (2, 18)  # type id, and bytes of a block of 32 weights
_F32: Final = (0, 4 * _WIDTH)
_ALIGNMENT: Final = 32  # bytes
_BLOCK_BYTES: Final = 1 << 20
_TYPES: Final = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}  # metadata value types: id, layout
_STRING, _ARRAY = 8, 9
# To add an array type: its name in `GgufArray` and its id in `gguf_metadata_value_type`.
_ELEMENTS: Final = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": 7, "string": 8,
    "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
_SHAPE: Final[Mapping[str, MetadataValue]] = {
    "general.architecture": "llama", "llama.context_length": 512, "llama.embedding_length": _WIDTH,
    "llama.block_count": 1, "llama.feed_forward_length": _WIDTH, "llama.attention.head_count": 1,
    "llama.attention.head_count_kv": 1, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def write_llama_template_model(path: Path, model: GgufHeader) -> Path:
    """Write a one-layer llama with the tokenizer metadata of `model` to `path`; a few megabytes at most."""
    kept = {key: value for key, value in model.metadata.items() if key.startswith("tokenizer.")}
    metadata = {**_SHAPE, **kept}
    tensors = list(_template_model_tensors(_template_model_vocabulary_size(model)))
    with path.open("wb") as out, model.paths[0].open("rb") as source:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            out.write(_template_model_string(key))
            if isinstance(value, GgufArray):
                out.write(struct.pack("<IIQ", _ARRAY, _ELEMENTS[value.element_type], value.length))
                source.seek(value.offset)
                out.write(source.read(value.size_bytes))
            else:
                out.write(_template_model_scalar(value))
        offset = 0
        for name, shape, (type_id, row_bytes) in tensors:
            out.write(
                _template_model_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, offset)
            )
            offset += -(-row_bytes * _template_model_rows(shape) // _ALIGNMENT) * _ALIGNMENT
        out.truncate(-(-out.tell() // _ALIGNMENT) * _ALIGNMENT + offset)  # a sparse file: the zeros use no disk space
    return path


def _template_model_vocabulary_size(model: GgufHeader) -> int:
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, GgufArray) else 0


def _template_model_tensors(n_vocab: int) -> Iterator[tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Name, shape in ggml's order, and (type id, bytes of a row)."""
    yield "token_embd.weight", (_WIDTH, n_vocab), _Q4_0
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        yield f"{name}.weight", (_WIDTH,), _F32
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        yield f"blk.0.{name}.weight", (_WIDTH, _WIDTH), _Q4_0


def _template_model_rows(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 2 else 1


def _template_model_scalar(value: float | bool | str) -> bytes:
    """A metadata value after its type. A tokenizer's integers are token ids, so they are written as uint32."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _template_model_string(value)
    number, layout = _TYPES[type(value)]
    return struct.pack("<I", number) + struct.pack(layout, value)


def _template_model_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
