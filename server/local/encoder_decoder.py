"""Serves one encoder-decoder with llama-cpp-python's library. A program as `model_process` starts it."""

from __future__ import annotations

import os
import sys
import threading
from importlib.metadata import version
from typing import Final

from quantyard.llama.library import LlamaLibrary, llama_library_path
from server.encoder_decoder.http_server import EncoderDecoderServer
from server.encoder_decoder.model import CannotServe
from server.encoder_decoder.models import ServedModels
from server.local.model_process import ModelSettings

_HOST: Final = "127.0.0.1"


def main() -> None:
    """Serve until stdin ends."""
    settings = ModelSettings.model_validate_json(sys.stdin.readline())
    # As in eval.Dockerfile: waiting threads release their core. Read by the OpenMP library when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    models = ServedModels(
        LlamaLibrary(llama_library_path(None)), {settings.name: settings.path},
        f"Quantyard's server of encoder-decoders (llama-cpp-python {version('llama-cpp-python')})",
        settings.context_size // settings.parallel, settings.parallel, settings.threads,
    )  # fmt: skip
    try:
        models.loaded(settings.name)
    except CannotServe as error:
        sys.exit(str(error))
    server = EncoderDecoderServer((_HOST, 0), models, [settings.key])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://{_HOST}:{server.server_port}", flush=True)  # noqa: T201 (what the parent waits for)
    sys.stdin.read()
    os._exit(0)  # without waiting for answers in progress


if __name__ == "__main__":
    main()
