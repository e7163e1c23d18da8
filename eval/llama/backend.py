"""Names what computes: llama.cpp's build, and the processor's instructions that it uses, which decide the last bits."""

from __future__ import annotations

import re
from typing import Final

import llama_cpp

_IN_USE: Final = re.compile(r"(\w+) = 1\b")
# Instructions whose use is a matter of course, or that change no result.
_UNTOLD: Final = frozenset({"SSE3", "SSSE3", "AVX", "BMI2", "OPENMP", "LLAMAFILE"})


def backend_name(n_gpu_layers: int) -> str:
    """"llama.cpp of llama-cpp-python 0.3.36 on the CPU (AVX2, F16C, FMA, REPACK)", or with layers on the GPU."""
    info = llama_cpp.llama_print_system_info().decode(errors="replace")
    uses = ", ".join(name for name in _IN_USE.findall(info) if name not in _UNTOLD)
    offers_gpu = n_gpu_layers != 0 and bool(llama_cpp.llama_supports_gpu_offload())
    layers = "all layers" if n_gpu_layers < 0 else f"{n_gpu_layers} layers"
    where = f"with {layers} on the GPU" if offers_gpu else "on the CPU"
    return f"llama.cpp of llama-cpp-python {llama_cpp.__version__} {where}{f' ({uses})' if uses else ''}"
