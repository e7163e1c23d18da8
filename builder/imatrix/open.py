"""Chooses the reader that computes the importance matrix: llama-imatrix if `LlamaTools.llama_bin` is set.

llama-imatrix ends itself on an encoder-decoder; the library of the same programs does not.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from builder.imatrix.reader import MatrixReader
from builder.imatrix.tool_reader import ToolReader
from builder.llama.toolchain import llama_tools
from quantyard.formats.gguf import GgufHeader
from quantyard.llama.library import llama_library_path
from quantyard.protocol.builder import CalibrateRequest
from quantyard.protocol.runner import Stage


def open_imatrix_reader(
    stage: Stage, model: GgufHeader, request: CalibrateRequest
) -> AbstractContextManager[MatrixReader]:
    """The reader for this image or host; enter it to use it."""
    llama_bin = llama_tools(stage).llama_bin
    if llama_bin is None or model.is_encoder_decoder:
        from builder.imatrix.bindings_reader import LocalReader

        library = llama_library_path(llama_bin) if llama_bin else None
        return LocalReader(model.paths[0], request.threads, request.n_ctx, library)
    return nullcontext(ToolReader(stage, model.paths[0], request.threads, request.n_ctx))
