"""Serves one model with llama.cpp's own server, out of the package xllamacpp. A program as `model_process` starts it.

Settings that are not told are those of the server image (server/image/entrypoint.sh).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Final

from quantyard.formats.gguf import GgufError, read_gguf_model
from quantyard.formats.purpose import POOLINGS, gguf_pooling, gguf_purpose
from quantyard.protocol.cache_types import cache_tensor_type, cache_type_pair
from server.local.model_process import ModelSettings

MAX_TEXT: Final = 4096  # tokens of a text to embed, as in server/image/defaults.sh
_HOST: Final = "127.0.0.1"
_WARNINGS: Final = 2  # of the levels of its log: errors, warnings, information, …
_HTTP_THREADS: Final = 32  # to start with; llama-server adds some for further connections


def main() -> None:
    """Serve until stdin ends."""
    settings = ModelSettings.model_validate_json(sys.stdin.readline())
    # As in eval.Dockerfile: waiting threads release their core. Read by the OpenMP library when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import xllamacpp

    try:
        server = xllamacpp.Server(llama_server_params(xllamacpp, settings))
    except RuntimeError:  # its log says why
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # its own handlers would end the serving, but not the process
        signal.signal(number, signal.SIG_DFL)
    print(server.listening_address, flush=True)  # noqa: T201 (what the parent waits for)
    sys.stdin.read()
    os._exit(0)  # without waiting for answers in progress


def llama_server_params(xllamacpp: Any, settings: ModelSettings) -> Any:
    """The parameters of llama-server."""
    params = xllamacpp.CommonParams()
    params.hostnames, params.port, params.api_keys = [_HOST], 0, [settings.key]
    params.n_threads_http, params.cors_origins, params.cors_credentials = _HTTP_THREADS, "", False
    params.verbosity = _WARNINGS
    params.endpoint_metrics, params.endpoint_slots, params.ui = True, False, True
    params.model.path, params.model_alias = str(settings.path), {settings.name}
    if settings.projector is not None:
        params.mmproj.path = str(settings.projector)
    params.n_ctx, params.n_parallel, params.kv_unified = settings.context_size, settings.parallel, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    k, v = (xllamacpp.ggml_type(cache_tensor_type(name).id) for name in cache_type_pair(settings.cache_type))
    params.cache_type_k, params.cache_type_v = k, v
    _set_llama_server_purpose(xllamacpp, params, settings)
    params.n_gpu_layers, params.fit_params, params.cache_ram_mib = settings.n_gpu_layers, False, 0
    return params


def _set_llama_server_purpose(xllamacpp: Any, params: Any, settings: ModelSettings) -> None:
    """What a model that embeds texts or ranks documents needs: its pooling, and a text computed at once."""
    try:
        header = read_gguf_model(settings.path)
    except (GgufError, OSError):  # llama-server says what is wrong with it
        return
    if gguf_purpose(header) == "generate":
        return
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type(POOLINGS.index(gguf_pooling(header)))
    room = settings.context_size // settings.parallel or MAX_TEXT
    params.n_batch = params.n_ubatch = min(header.context_length or MAX_TEXT, MAX_TEXT, room)


if __name__ == "__main__":
    main()
