"""Chooses the runtime for this image or host: llama-server if `LlamaTools.llama_bin` is set, else llama-cpp-python.

llama-server ends itself on an encoder-decoder, so in an image those are run by the library of its programs.
"""

from __future__ import annotations

from builder.llama.runtime import LlamaRuntime
from builder.llama.server_runtime import ServerRuntime
from builder.llama.template_server import TemplateServer
from builder.llama.toolchain import llama_tools
from quantyard.formats.gguf import GgufHeader
from quantyard.formats.purpose import gguf_pooling, gguf_purpose
from quantyard.llama.library import llama_library_path
from quantyard.protocol.runner import Stage


def open_llama_runtime(stage: Stage, model: GgufHeader, threads: int) -> LlamaRuntime:
    """The runtime for this image or host; enter it to load the model (`threads` 0: llama.cpp's default)."""
    llama_bin = llama_tools(stage).llama_bin
    if llama_bin is None or model.is_encoder_decoder:
        from builder.llama.bindings_runtime import BindingsRuntime

        library = llama_library_path(llama_bin) if llama_bin else None
        return BindingsRuntime(model.paths[0], threads, library, gguf_pooling(model))
    binary = llama_bin / "llama-server"
    has_template = any(key.startswith("tokenizer.chat_template") for key in model.metadata)
    templates = TemplateServer(binary, model, stage.scratch_dir) if has_template else None
    flags = {
        "generate": (), "embed": ("--embeddings", "--pooling", gguf_pooling(model)), "rerank": ("--reranking",),
    }  # fmt: skip
    return ServerRuntime(binary, model.paths[0], threads, templates, flags[gguf_purpose(model)])
