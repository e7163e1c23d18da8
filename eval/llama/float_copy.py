"""Copies of GGUFs with every weight as float32, to compute a file's weights without the rounding of a backend.

llama.cpp multiplies quantized weights with activations of 8 bits, and BF16 weights with activations in BF16. Of the
same weights as float32 it computes with float32 activations: what then differs from the baseline is the file's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import llama_cpp

from eval.llama.model import LOG, GgufModel
from quantyard.formats.gguf import GgufHeader
from quantyard.formatting.numbers import format_memory
from quantyard.hardware.machine import available_memory_bytes, physical_cores
from quantyard.protocol.divergence_results import DivergencePartsMissing

_BYTES: Final = 4  # of a weight
_MARGIN: Final = 1.1  # the copy's metadata, and the working memory of a decode
_LEFT_FREE_BYTES: Final = 1 << 30  # of the disk, for what else runs
_ALL_F32: Final = 0  # LLAMA_FTYPE_ALL_F32


def why_no_float_copies(
    headers: Sequence[GgufHeader], scratch: Path, rows_bytes: int, memory_bytes: int | None = None
) -> DivergencePartsMissing | None:
    """Why copies of these files cannot be made one after the other; None if they can.

    Args:
        scratch: where the copy is written.
        rows_bytes: memory that is held beside one copy.
        memory_bytes: what may be used; None: what is available.
    """
    needed = round(_MARGIN * max(_BYTES * header.n_params for header in headers))
    memory = available_memory_bytes() if memory_bytes is None else memory_bytes
    free = shutil.disk_usage(scratch).free
    if needed + rows_bytes > memory:
        said = f"a float32 copy needs {format_memory(needed + rows_bytes)} of memory; {format_memory(memory)} are free"
        return DivergencePartsMissing(reason="TOO_LARGE", finding=said)
    if needed > free - _LEFT_FREE_BYTES:
        said = f"a float32 copy needs {format_memory(needed)} of disk; {format_memory(free)} are free"
        return DivergencePartsMissing(reason="TOO_LARGE", finding=said)
    return None


@contextmanager
def float32_copy(header: GgufHeader, scratch: Path, threads: int) -> Iterator[GgufModel]:
    """The same weights as float32, loaded on the CPU; the copy is removed afterwards. All shards become one file.

    Raises:
        StageFailure: `float-copy` (3): llama.cpp cannot convert a type of this file.
    """
    path = scratch / "float32.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = _ALL_F32, True, threads or physical_cores()
    try:
        source, target = str(header.paths[0]).encode(), str(path).encode()
        if llama_cpp.llama_model_quantize(source, target, params):
            message = f"llama.cpp cannot convert {header.paths[0].name} to float32."
            raise LOG.failure(message, "float-copy", "Leave it out: `divergence: {weights_chunks: 0}` in a suite.")
        with GgufModel.load(path) as model:
            yield model
    finally:
        path.unlink(missing_ok=True)
