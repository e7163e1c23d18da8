"""The stage `rounding`: measures the rounding error of each type on each tensor, with ggml, on a sample of rows.

The search of tensor types uses these errors. A fixed table would not do: weights that were quantized before lie on a
grid, and the type of that grid represents them exactly, while a type with more bits may not.
"""

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
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.ggml_types import TYPE_BY_NAME
from quantyard.formats.gguf import GgufError, GgufHeader, TensorInfo, read_gguf_model
from quantyard.formats.tensor_patterns import may_change_tensor_type, tensor_type_for_row
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import RoundingRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

ERRORS: Final = "rounding.json"
_LIBRARY: Final = "libggml-base.*"
_SYSTEM: Final = Path("/usr/lib")  # where Debian's packages install it
_HINT: Final = "Make the tools again: make images"
_LEAST: Final = 1e-9  # about the error of float32 itself; smaller errors are raised to it

Floats = npt.NDArray[np.float32]


def rounding(stage: Stage, request: RoundingRequest) -> StageOutcome:
    """Write `rounding.json`: tensor → type → sum of squared errors, relative to the sum of squared weights.

    Raises:
        StageFailure: 2 if the source cannot be read or is quantized, 3 if ggml's library is not found.
    """
    header = _read_gguf_to_round(stage.in_dir / "source" / request.source_file)
    ggml, found = _opened_ggml(_ggml_library(stage)), {}
    tensors = [tensor for tensor in header.tensors if may_change_tensor_type(tensor)]
    for number, tensor in enumerate(tensors, 1):
        weights = sample_rounded_rows(ggml, tensor, request.rows)
        kinds = dict.fromkeys(tensor_type_for_row(kind, tensor.shape[0]) for kind in request.types)
        found[tensor.name] = {kind: ggml.error(weights, kind) for kind in kinds}
        stage.progress(number, len(tensors), "tensors", tensor.name)
    (stage.files_dir / ERRORS).write_text(dump_finite_json(found, indent=1) + "\n")
    return StageOutcome(facts={"tensors": len(found), "rows": request.rows})


def _read_gguf_to_round(path: Path) -> GgufHeader:
    try:
        header = read_gguf_model(path)
    except (GgufError, FileNotFoundError) as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", f"{error}.", "Give an unquantized GGUF.") from error
    if header.is_quantized:
        message = f"{path.name} is quantized already, so the rounding errors of its weights cannot be measured."
        raise StageFailure(ExitCode.BAD_REQUEST, "requantize", message, "Give the unquantized GGUF it was made from.")
    return header


def _ggml_library(stage: Stage) -> Path:
    """The library that the image's tools are linked with, or the one inside llama-cpp-python."""
    for folder in _ggml_library_folders(stage):
        if found := sorted(folder.glob(_LIBRARY)):
            return found[0]
    if name := ctypes.util.find_library("ggml-base"):
        return Path(name)
    message = "The ggml library (libggml-base) was not found, so rounding errors cannot be measured."
    raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "no-ggml", message, _HINT)


def _opened_ggml(library: Path) -> Ggml:
    try:
        return Ggml(library)
    except (OSError, AttributeError) as error:  # see `Ggml`
        message = f"{library} is not a usable ggml library: {error}."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "no-ggml", message, _HINT) from error


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
    for types that need an importance matrix, so callers must leave those out.

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

    def error(self, weights: Floats, kind: str) -> float:
        """Sum of squared errors of these rows in a type, relative to their sum of squares."""
        total = float(np.square(weights, dtype=np.float64).sum())
        if not total:
            return _LEAST
        row = TYPE_BY_NAME[kind]
        out = np.empty(weights.size // row.block_size * row.type_size_bytes, np.uint8)
        rows, length = weights.shape
        self._ggml.ggml_quantize_chunk(row.id, weights.ctypes.data, out.ctypes.data, 0, rows, length, None)
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


def main() -> None:
    """Entry point of the stage."""
    run_stage(RoundingRequest, rounding)


if __name__ == "__main__":
    main()
