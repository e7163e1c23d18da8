"""Writes GGUF files for tests, byte by byte, so that hostile ones can be made as easily as valid ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantyard.formats.ggml_types import TYPE_BY_NAME

Value = str | int | float | bool | list[str] | list[int]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to write: `shape` in ggml's order; `data` None means zeros of the right length."""

    name: str
    shape: tuple[int, ...]
    type_name: str = "F32"
    data: bytes | None = None

    @property
    def bytes(self) -> bytes:
        if self.data is not None:
            return self.data
        row = TYPE_BY_NAME[self.type_name]
        n_params = 1
        for length in self.shape:
            n_params *= length
        return bytes(n_params // row.block_size * row.type_size_bytes)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(item: Value) -> bytes:
    if isinstance(item, bool):
        return struct.pack("<IB", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if item and isinstance(item[0], int):
        return struct.pack("<IIQ", 9, 5, len(item)) + struct.pack(f"<{len(item)}i", *item)
    return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(string(str(text)) for text in item)


def tensor_info(name: str, shape: Sequence[int], type_id: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, offset)


def preamble(n_tensors: int, n_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_keys)


def gguf(metadata: Mapping[str, Value], tensors: Sequence[TensorSpec], version: int = 3, alignment: int = 32) -> bytes:
    """A whole valid file."""
    keys = b"".join(string(key) + value(item) for key, item in metadata.items())
    infos, data = b"", b""
    for tensor in tensors:
        infos += tensor_info(tensor.name, tensor.shape, TYPE_BY_NAME[tensor.type_name].id, len(data))
        data += tensor.bytes + bytes(-len(tensor.bytes) % alignment)
    head = preamble(len(tensors), len(metadata), version) + keys + infos
    return head + bytes(-len(head) % alignment) + data


SMALL_METADATA: Mapping[str, Value] = {
    "general.architecture": "llama", "general.file_type": 15, "llama.context_length": 2048, "flag": True, "scale": 0.5,
    "tokenizer.ggml.tokens": ["a", "bc", "", "def"], "tokenizer.ggml.token_type": [1, 1, 3, 1],
    "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip
SMALL_TENSORS = (
    TensorSpec("token_embd.weight", (256, 3), "Q4_K"), TensorSpec("blk.0.attn_q.weight", (32, 2), "Q5_0"),
    TensorSpec("output_norm.weight", (7,), "F32"),
)  # fmt: skip
SMALL = gguf(SMALL_METADATA, SMALL_TENSORS)
