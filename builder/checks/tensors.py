"""Checks on tensors: no NaN or infinity in any block, and a quantized file holds what its source holds.

Scales are read in place, as strided views of the raw bytes: nothing is dequantized, so a check runs at about
the speed of reading the file, in a few megabytes whatever the model's size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from quantyard.formats.ggml_types import TYPE_BY_NAME, BlockScale, ScaleKind, TensorType
from quantyard.formats.gguf import GgufHeader, TensorInfo
from quantyard.formats.tensor_patterns import tensor_type_for_row

_CHUNK_BYTES: Final = 4 * 1024 * 1024  # stays in the processor's cache, which is faster than larger reads
_MAX_NAMED: Final = 5

# The bits that are all set in NaN and infinity, and in no finite number: the exponent.
_EXPONENT: Final[dict[ScaleKind, tuple[str, int]]] = {
    "f16": ("<u2", 0x7C00),
    "bf16": ("<u2", 0x7F80),
    "f32": ("<u4", 0x7F80_0000),
    "f64": ("<u8", 0x7FF0_0000_0000_0000),
    "e8m0": ("u1", 0xFF),
    "ue4m3": ("u1", 0x7F),
}

# Type → its layout, the bits without the sign, and those of the largest value that F16 holds, 65,504.
_F16_LIMIT: Final = {"F32": ("<u4", 0x7FFF_FFFF, 0x477F_E000), "BF16": ("<u2", 0x7FFF, 0x477F)}

# To add a quant: its name, and the type of most of its weights (`llama_ftype_get_default_type` in
# src/llama-quant.cpp). MXFP4_MOE has two: experts are MXFP4, a model without experts is all Q8_0.
PROMISED_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "F32": ("F32",), "F16": ("F16",), "BF16": ("BF16",),
    "Q1_0": ("Q1_0",), "Q2_0": ("Q2_0",),
    "Q4_0": ("Q4_0",), "Q4_1": ("Q4_1",), "Q5_0": ("Q5_0",), "Q5_1": ("Q5_1",), "Q8_0": ("Q8_0",),
    "Q2_K": ("Q2_K",), "Q2_K_S": ("Q2_K",),
    "Q3_K": ("Q3_K",), "Q3_K_S": ("Q3_K",), "Q3_K_M": ("Q3_K",), "Q3_K_L": ("Q3_K",),
    "Q4_K": ("Q4_K",), "Q4_K_S": ("Q4_K",), "Q4_K_M": ("Q4_K",),
    "Q5_K": ("Q5_K",), "Q5_K_S": ("Q5_K",), "Q5_K_M": ("Q5_K",),
    "Q6_K": ("Q6_K",),
    "IQ1_S": ("IQ1_S",), "IQ1_M": ("IQ1_M",),
    "IQ2_XXS": ("IQ2_XXS",), "IQ2_XS": ("IQ2_XS",), "IQ2_S": ("IQ2_XS",), "IQ2_M": ("IQ2_S",),
    "IQ3_XXS": ("IQ3_XXS",), "IQ3_XS": ("IQ3_S",), "IQ3_S": ("IQ3_S",), "IQ3_M": ("IQ3_S",),
    "IQ4_NL": ("IQ4_NL",), "IQ4_XS": ("IQ4_XS",),
    "TQ1_0": ("TQ1_0",), "TQ2_0": ("TQ2_0",),
    "MXFP4_MOE": ("MXFP4", "Q8_0"), "NVFP4": ("NVFP4",),
}  # fmt: skip


def count_nonfinite_blocks(path: Path, tensor: TensorInfo) -> int:
    """How many blocks of a tensor in the file at `path` have a scale (or a value) that is NaN or infinite.

    Raises:
        OSError: the file cannot be read, or ends before the tensor does.
    """
    return count_nonfinite_bytes(path, tensor.offset, tensor.size_bytes, tensor.type)


def count_nonfinite_bytes(path: Path, offset: int, size_bytes: int, layout: TensorType) -> int:
    """The same for `size_bytes` bytes at `offset` of any file, laid out as this type; reads 4 MiB at a time."""
    if not layout.scales:
        return 0
    return sum(
        _count_nonfinite_values(chunk, layout)
        for chunk in _tensor_chunks(path, offset, size_bytes, layout.type_size_bytes)
    )


def exceeds_f16(tensor: TensorInfo) -> bool:
    """Whether a value of an F32 or BF16 tensor is beyond what F16 holds, so that a scale of it may become infinite."""
    if tensor.type.name not in _F16_LIMIT:
        return False
    dtype, mask, limit = _F16_LIMIT[tensor.type.name]
    chunks = _tensor_chunks(tensor.path, tensor.offset, tensor.size_bytes, tensor.type.type_size_bytes)
    return any(bool(((np.frombuffer(chunk, dtype) & mask) > limit).any()) for chunk in chunks)


def _tensor_chunks(path: Path, offset: int, size_bytes: int, block_bytes: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(size_bytes, _CHUNK_BYTES // block_bytes * block_bytes)))
    with path.open("rb", buffering=0) as stream:
        stream.seek(offset)
        while size_bytes:
            chunk = buffer[: min(size_bytes, len(buffer))]
            _read_tensor_chunk(stream, chunk, path)
            size_bytes -= len(chunk)
            yield chunk


def _read_tensor_chunk(stream: FileIO, chunk: memoryview, path: Path) -> None:
    done = 0
    while done < len(chunk):
        n_bytes = stream.readinto(chunk[done:])
        if not n_bytes:
            raise OSError(f"{path} became shorter while it was read")
        done += n_bytes


def _count_nonfinite_values(chunk: memoryview, layout: TensorType) -> int:
    bad = _is_nonfinite_scale(chunk, layout.scales[0], layout.type_size_bytes)
    for scale in layout.scales[1:]:
        bad |= _is_nonfinite_scale(chunk, scale, layout.type_size_bytes)
    return int(np.count_nonzero(bad))


def _is_nonfinite_scale(chunk: memoryview, scale: BlockScale, block_bytes: int) -> npt.NDArray[np.bool_]:
    if scale.kind == "iq1_m":
        bits, exponent = _iq1_m_bits(chunk, scale.offset_bytes, block_bytes), _EXPONENT["f16"][1]
    else:
        dtype, exponent = _EXPONENT[scale.kind]
        bits = _tensor_block_field(chunk, dtype, scale.offset_bytes, block_bytes)
    found: npt.NDArray[np.bool_] = (bits & exponent) == exponent
    return found


def _tensor_block_field(chunk: memoryview, dtype: str, offset_bytes: int, block_bytes: int) -> npt.NDArray[Any]:
    n_blocks = len(chunk) // block_bytes
    return np.ndarray((n_blocks,), dtype, buffer=chunk, offset=offset_bytes, strides=(block_bytes,))


def _iq1_m_bits(chunk: memoryview, offset_bytes: int, block_bytes: int) -> npt.NDArray[Any]:
    """An f16 of which each of four words holds four bits, the lowest first, in its own highest four."""
    words = [_tensor_block_field(chunk, "<u2", offset_bytes + 2 * i, block_bytes) for i in range(4)]
    return words[0] >> 12 | (words[1] >> 12) << 4 | (words[2] >> 12) << 8 | (words[3] >> 12) << 12


def count_tensor_types(tensors: Sequence[TensorInfo]) -> dict[str, int]:
    """Type → how many tensors have it, the most frequent first."""
    return dict(Counter(tensor.type.name for tensor in tensors).most_common())


def compare_tensors(source: GgufHeader, quantized: GgufHeader, quant: str | None) -> list[str]:
    """What in `quantized` is not as quantizing `source` to `quant` must leave it, as sentences; [] when all is.

    `quant` None: nothing is promised of its types. Shapes that differ in trailing ones are the same: llama-quantize
    drops them.
    """
    before = {tensor.name: tensor for tensor in source.tensors}
    after = {tensor.name: tensor for tensor in quantized.tensors}
    wrong = [
        *_missing_tensor_faults(before, after, "missing from"),
        *_missing_tensor_faults(after, before, "not in the source, but in"),
    ]
    for name in before.keys() & after.keys():
        wrong += _compare_tensor(before[name], after[name], quant)
    return sorted(wrong) + (_broken_quant_promise(quantized, quant) if quant else [])


def check_recipe_types(types: Mapping[str, str], quantized: GgufHeader) -> list[str]:
    """Which tensors have not the type that a recipe gives them (`types`, by name), as sentences; [] when all have."""
    return [
        f"Tensor {tensor.name} is {tensor.type.name}, and the recipe says {types[tensor.name]}."
        for tensor in quantized.tensors if types.get(tensor.name, tensor.type.name) != tensor.type.name
    ]


def is_tensor_worth_comparing(tensor: TensorInfo) -> bool:
    """Whether llama.cpp may quantize it: it has at least two dimensions."""
    return len(_trimmed_tensor_shape(tensor.shape)) > 1


def _missing_tensor_faults(has: dict[str, TensorInfo], lacks: dict[str, TensorInfo], what: str) -> list[str]:
    names = sorted(has.keys() - lacks.keys())
    if not names:
        return []
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return [f"{len(names)} tensors are {what} the quantized file: {', '.join(names[:_MAX_NAMED])}{more}."]


def _compare_tensor(before: TensorInfo, after: TensorInfo, quant: str | None) -> list[str]:
    if _trimmed_tensor_shape(before.shape) != _trimmed_tensor_shape(after.shape):
        return [f"Tensor {before.name} has the shape {after.shape}, its source {before.shape}."]
    if not is_tensor_worth_comparing(before):
        is_kept = after.type_id == before.type_id
        what = f"is {after.type.name}, its source {before.type.name}: one dimension is never quantized"
        return [] if is_kept else [f"Tensor {before.name} {what}."]
    if not before.type.is_quantized and after.type.bits_per_weight > _widest_bits_per_weight(before, quant):
        return [f"Tensor {before.name} is {after.type.name}, wider than its source, {before.type.name}."]
    return []


def _widest_bits_per_weight(before: TensorInfo, quant: str | None) -> float:
    promised = [TYPE_BY_NAME[name].bits_per_weight for name in PROMISED_TYPES.get(quant or "", ())]
    return max([before.type.bits_per_weight, *promised])


def _broken_quant_promise(quantized: GgufHeader, quant: str) -> list[str]:
    promised = PROMISED_TYPES.get(quant)
    candidates = [tensor for tensor in quantized.tensors if is_tensor_worth_comparing(tensor)]
    if promised is None or any(has_promised_type(tensor, name) for tensor in candidates for name in promised):
        return []
    found = ", ".join(count_tensor_types(candidates)) or "nothing"
    return [f"No tensor has the type that {quant} promises ({' or '.join(promised)}); there is {found}."]


def has_promised_type(tensor: TensorInfo, promised: str) -> bool:
    """Whether a tensor has this type, or the one that llama-quantize takes where its rows are too narrow."""
    return tensor.type.name == tensor_type_for_row(promised, tensor.shape[0])


def _trimmed_tensor_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
