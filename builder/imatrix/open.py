"""Chooses the reader that computes the importance matrix: llama-imatrix if `LlamaTools.llama_bin` is set."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from builder.imatrix.reader import MatrixReader
from builder.imatrix.tool_reader import ToolReader
from builder.llama.toolchain import llama_tools
from quantyard.protocol.builder import CalibrateRequest
from quantyard.protocol.runner import Stage


def open_imatrix_reader(stage: Stage, model: Path, request: CalibrateRequest) -> AbstractContextManager[MatrixReader]:
    """The reader for this image or host; enter it to use it."""
    if llama_tools(stage).llama_bin is None:
        from builder.imatrix.bindings_reader import LocalReader

        return LocalReader(model, request.threads, request.n_ctx)
    return nullcontext(ToolReader(stage, model, request.threads, request.n_ctx))
