"""Values in safetensors files that are not numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from builder.checks.tensors import count_nonfinite_bytes
from quantyard.formats.ggml_types import TYPE_BY_NAME
from quantyard.formats.safetensors import SafetensorsFile

_LAYOUT: Final = {"F16": "F16", "BF16": "BF16", "F32": "F32", "F64": "F64"}  # safetensors dtype → ggml type


def find_nonfinite_tensors(files: Sequence[SafetensorsFile]) -> list[str]:
    """Names of the tensors that hold NaN or infinity (dtypes F16, BF16, F32 and F64), in order of appearance.

    Such values never come from training; they come from flipped bits and bad merges. Reads every byte, 4 MiB
    at a time, at about the disk's speed.
    """
    return [
        name
        for file in files
        for name, tensor in file.tensors.items()
        if tensor.dtype in _LAYOUT
        and count_nonfinite_bytes(
            file.path, tensor.start, tensor.end - tensor.start, TYPE_BY_NAME[_LAYOUT[tensor.dtype]]
        )
    ]
