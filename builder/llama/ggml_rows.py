"""ggml's functions that quantize and dequantize rows of weights, called in the library that this image or host has."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from builder.llama.toolchain import llama_tools
from quantyard.formats.ggml_types import TYPE_BY_NAME
from quantyard.formats.gguf import TensorInfo
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import Stage, StageFailure

_LIBRARY: Final = "libggml-base.*"
_SYSTEM: Final = Path("/usr/lib")  # where Debian's packages install it
_HINT: Final = "Make the tools again: make images"
_LEAST: Final = 1e-9  # about the error of float32 itself; smaller errors are raised to it
# What `ggml_quantize_chunk` makes in every version (ggml.c), and of it what it makes with an importance matrix alone
# (`ggml_quantize_requires_imatrix`).
_NEED_MATRIX: Final = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
_WRITTEN: Final = frozenset({
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_M",
    "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", *_NEED_MATRIX,
})  # fmt: skip

Floats = npt.NDArray[np.float32]


def open_ggml(stage: Stage) -> Ggml:
    """The functions of the library that the image's tools are linked with, or of the one inside llama-cpp-python.

    Raises:
        StageFailure: `no-ggml`, the library was not found, or is not usable.
    """
    library = _ggml_library(stage)
    try:
        return Ggml(library)
    except (OSError, AttributeError) as error:  # see `Ggml`
        message = f"{library} is not a usable ggml library: {error}."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "no-ggml", message, _HINT) from error


def _ggml_library(stage: Stage) -> Path:
    """The library that the image's tools are linked with, or the one inside llama-cpp-python."""
    for folder in _ggml_library_folders(stage):
        if found := sorted(folder.glob(_LIBRARY)):
            return found[0]
    if name := ctypes.util.find_library("ggml-base"):
        return Path(name)
    message = "The ggml library (libggml-base) was not found, so rounding errors cannot be measured."
    raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "no-ggml", message, _HINT)


def _ggml_library_folders(stage: Stage) -> Iterator[Path]:
    if llama_bin := llama_tools(stage).llama_bin:
        yield llama_bin
        yield from sorted(_SYSTEM.glob("*-linux-gnu*"))
    elif (spec := find_spec("llama_cpp")) and spec.origin:
        yield Path(spec.origin).parent / "lib"


class _Traits(ctypes.Structure):
    """The first fields of ggml_type_traits (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p),
    )  # fmt: skip


class Ggml:
    """ggml's functions that quantize and dequantize rows.

    `ggml_init` is not needed: `ggml_quantize_chunk` makes the lookup tables of a type itself. It aborts the process
    for types that it cannot make, see `can_write`.

    Raises:
        OSError: the library does not load, or its ggml_type_traits has another layout.
        AttributeError: the library lacks one of these functions.
    """

    def __init__(self, library: Path) -> None:
        self._ggml = ctypes.CDLL(str(library))
        self._ggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
        self._ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
        known = TYPE_BY_NAME["Q8_0"]
        traits = self._ggml.ggml_get_type_traits(known.id).contents
        if (traits.block, traits.size) != (known.block_size, known.type_size_bytes):
            raise OSError("its ggml_type_traits has an unknown layout")

    def floats(self, data: npt.NDArray[np.uint8], kind: int, n: int) -> Floats:
        """`n` weights of a type as float32."""
        if kind == TYPE_BY_NAME["F32"].id:
            return data.view(np.float32)
        out = np.empty(n, np.float32)
        address = self._ggml.ggml_get_type_traits(kind).contents.to_float
        convert = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(address)
        convert(data.ctypes.data, out.ctypes.data, n)
        return out

    def can_read(self, kind: int) -> bool:
        """Whether weights of this type can be read as float32: not those of integers."""
        traits = self._ggml.ggml_get_type_traits(kind).contents
        return kind == TYPE_BY_NAME["F32"].id or bool(traits.to_float)

    def can_write(self, kind: str) -> bool:
        """Whether `error` can be asked about this type."""
        return kind in _WRITTEN

    def error(self, weights: Floats, kind: str) -> float:
        """Sum of squared errors of these rows in a type, relative to their sum of squares."""
        total = float(np.square(weights, dtype=np.float64).sum())
        if not total:
            return _LEAST
        row = TYPE_BY_NAME[kind]
        out = np.empty(weights.size // row.block_size * row.type_size_bytes, np.uint8)
        rows, length = weights.shape
        alike = np.ones(length, np.float32)  # all weights count alike
        matrix = alike.ctypes.data if kind in _NEED_MATRIX else None
        self._ggml.ggml_quantize_chunk(row.id, weights.ctypes.data, out.ctypes.data, 0, rows, length, matrix)
        read = self.floats(out, row.id, weights.size).reshape(weights.shape)
        wrong = float(np.square(read - weights, dtype=np.float64).sum())
        return max(wrong / total, _LEAST)


def sample_rounded_rows(ggml: Any, tensor: TensorInfo, rows: int) -> Floats:
    """At most `rows` rows of a tensor as float32, evenly spaced over all of it."""
    length = tensor.shape[0]
    n_rows = tensor.n_params // length
    row_bytes = tensor.size_bytes // n_rows
    stored = np.memmap(tensor.path, np.uint8, "r", tensor.offset, (n_rows, row_bytes))
    chosen = np.ascontiguousarray(stored[:: -(-n_rows // rows)])
    found: Floats = ggml.floats(chosen.reshape(-1), tensor.type_id, len(chosen) * length)
    return np.ascontiguousarray(found.reshape(len(chosen), length))
