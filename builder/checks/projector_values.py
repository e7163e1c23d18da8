"""Finds the values of a projector's tensors in the model that it was made of, and measures how far Q8_0 rounds them.

A converter renames, permutes, splits and sometimes computes tensors. What it only moved is recognized by its values: a
sum of hashes of all values, rounded to the type of the result, which does not depend on their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from quantyard.formats.gguf import GgufHeader, TensorInfo
from quantyard.formats.safetensors import SafetensorsFile, SafetensorsTensor

_Bits = npt.NDArray[Any]
_BITS: Final = {"F32": "<u4", "F16": "<u2", "BF16": "<u2"}  # of a value of the result
_SOURCES: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SPLITS: Final = (3, 2)  # of the first dimension: queries, keys and values; gates and values
_FRAMES: Final = 5  # dimensions of a kernel that reads several frames of a film; each frame becomes a tensor
_CHUNK: Final = 1 << 20  # values that are hashed at once
_Q8_BLOCK: Final = np.dtype([("scale", "<f2"), ("values", "i1", 32)])


@dataclass(frozen=True)
class Fingerprint:
    """The values of a tensor: in any order, and in theirs."""

    n: int
    any_order: int
    own_order: int


@dataclass(frozen=True)
class Traced:
    """Where the values of a projector's tensors are from; names of the result."""

    same: tuple[str, ...]  # a tensor of the source, or a part of one
    moved: tuple[str, ...]  # the same values in another order
    computed: tuple[str, ...]  # by the converter
    share: float  # of the weights that are not computed


def trace_projector(projector: GgufHeader, weights: Sequence[SafetensorsFile]) -> Traced:
    """Look for the values of each tensor in the source.

    Args:
        projector: with tensors of F32, F16 or BF16; others count as computed.
        weights: the files of the source.
    """
    known = _projector_fingerprints(projector, weights)
    places: dict[str, list[str]] = {"same": [], "moved": [], "computed": []}
    n_found = 0
    for tensor in projector.tensors:
        found = tensor.type.name in _BITS and _projector_fingerprint(
            _raw_projector_bits(tensor, _BITS[tensor.type.name])
        )
        orders = known.get((tensor.type.name, found.n, found.any_order)) if found else None
        kind = "computed" if not found or orders is None else "same" if found.own_order in orders else "moved"
        places[kind].append(tensor.name)
        n_found += 0 if kind == "computed" else tensor.n_params
    named = {kind: tuple(names) for kind, names in places.items()}
    return Traced(**named, share=n_found / max(1, projector.n_params))


def q8_0_error(exact: GgufHeader, rounded: GgufHeader) -> tuple[float, str]:
    """The largest relative RMS difference of a tensor that is Q8_0 in `rounded`, and its name; (0, "") without one."""
    before = {tensor.name: tensor for tensor in exact.tensors}
    errors = [
        (_relative_rms_of_projector(before[tensor.name], tensor), tensor.name)
        for tensor in rounded.tensors if tensor.type.name == "Q8_0" and tensor.name in before
    ]
    return max(errors, default=(0.0, ""))


def _projector_fingerprints(
    projector: GgufHeader, weights: Sequence[SafetensorsFile]
) -> Mapping[tuple[str, int, int], set[int]]:
    """(type, number of values, hash) of what the source holds → the hashes in order. Only sizes that are wanted."""
    wanted = {(tensor.type.name, tensor.n_params) for tensor in projector.tensors if tensor.type.name in _BITS}
    found: dict[tuple[str, int, int], set[int]] = {}
    for file in weights:
        for tensor in file.tensors.values():
            for type_name, part in _projector_source_parts(file, tensor, wanted):
                own = _projector_fingerprint(_rounded_projector_bits(part, type_name))
                found.setdefault((type_name, own.n, own.any_order), set()).add(own.own_order)
    return found


def _projector_source_parts(
    file: SafetensorsFile, tensor: SafetensorsTensor, wanted: set[tuple[str, int]]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The tensor, or parts of it, as values of the source for each type that has a tensor of this size."""
    if tensor.dtype not in _SOURCES or not tensor.n_params:
        return
    pieces = [1, *(n for n in _SPLITS if tensor.shape and tensor.shape[0] % n == 0)]
    frames = tensor.shape[2] if len(tensor.shape) == _FRAMES else 0
    for type_name in sorted({name for name, _ in wanted}):
        for n in pieces:
            if (type_name, tensor.n_params // n) in wanted:
                yield from ((type_name, part) for part in np.split(_projector_source_values(file, tensor), n))
        if frames > 1 and (type_name, tensor.n_params // frames) in wanted:
            yield from ((type_name, _projector_source_values(file, tensor)[:, :, frame]) for frame in range(frames))


def _projector_source_values(file: SafetensorsFile, tensor: SafetensorsTensor) -> npt.NDArray[Any]:
    """The values as they are in the file; BF16 as its bits."""
    shape = tensor.shape or (1,)
    found: npt.NDArray[Any] = np.memmap(file.path, _SOURCES[tensor.dtype], "r", tensor.start, shape)
    return found


def _rounded_projector_bits(values: npt.NDArray[Any], type_name: str) -> Iterator[_Bits]:
    """The bits of these values in a type of the result, some at a time."""
    flat = values.reshape(-1)
    for at in range(0, flat.size, _CHUNK):
        part = flat[at : at + _CHUNK]
        wide = (part.astype("<u4") << 16).view("<f4") if part.dtype == np.dtype("<u2") else part.astype("<f4")
        with np.errstate(over="ignore"):
            yield _projector_values_as_type(wide, type_name)


def _projector_values_as_type(wide: npt.NDArray[Any], type_name: str) -> _Bits:
    if type_name == "F16":
        return wide.astype("<f2").view("<u2")
    bits: _Bits = wide.view("<u4")
    if type_name == "BF16":
        return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return bits


def _raw_projector_bits(tensor: TensorInfo, layout: str) -> Iterator[_Bits]:
    held = np.memmap(tensor.path, layout, "r", tensor.offset, (tensor.size_bytes // np.dtype(layout).itemsize,))
    for at in range(0, held.size, _CHUNK):
        yield held[at : at + _CHUNK]


def _projector_fingerprint(chunks: Iterator[_Bits]) -> Fingerprint:
    n, any_order, own_order = 0, np.uint64(0), np.uint64(0)
    with np.errstate(over="ignore"):
        for chunk in chunks:
            mixed = (chunk.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(32)
            places = np.arange(n, n + chunk.size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            any_order += mixed.sum(dtype=np.uint64)
            own_order += (mixed * places).sum(dtype=np.uint64)
            n += chunk.size
    return Fingerprint(n, int(any_order), int(own_order))


def _relative_rms_of_projector(before: TensorInfo, after: TensorInfo) -> float:
    """||after - before|| / ||before|| of a tensor that is F16, BF16 or F32, and Q8_0."""
    blocks = np.memmap(after.path, _Q8_BLOCK, "r", after.offset, (after.size_bytes // _Q8_BLOCK.itemsize,))
    layout = _SOURCES[before.type.name]
    exact = np.memmap(before.path, layout, "r", before.offset, (before.n_params,))
    error = size = 0.0
    per_chunk = _CHUNK // 32
    for at in range(0, len(blocks), per_chunk):
        some = blocks[at : at + per_chunk]
        rounded = some["scale"].astype("<f4")[:, None] * some["values"]
        part = exact[at * 32 : at * 32 + rounded.size]
        wide = (part.astype("<u4") << 16).view("<f4") if layout == "<u2" else part.astype("<f4")
        error += float(np.square(rounded.reshape(-1) - wide, dtype=np.float64).sum())
        size += float(np.square(wide, dtype=np.float64).sum())
    return float(np.sqrt(error / size)) if size else 0.0
