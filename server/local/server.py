"""The server of ENGINE=local: llama.cpp's own on loopback, behind the checks of `guard` and `connections`.

Usage: python -m server.local.server SETTINGS      a file that `protocol.api_tests.LocalServerSettings` describes

Exit codes: 0 it was told to end, by SIGINT or SIGTERM · that of the process of a model that did not load, or that
crashed (128 + the signal that ended it); with `reloads` a model whose process was merely killed is loaded again
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import uvicorn

from quantyard.formats.gguf import GgufError, read_gguf_header
from quantyard.hardware.machine import physical_cores
from quantyard.protocol.api_tests import LocalServerSettings
from server.local.connections import Connections, LimitedProtocol
from server.local.forward import forwarding_client
from server.local.guard import Guard
from server.local.model_process import ModelEnded, ModelProcess, ModelSettings
from server.local.models import Models
from server.local.router import Router

_HOST: Final = "127.0.0.1"
_PROGRAM: Final = "server.local.llama_server"
_OF_ENCODER_DECODERS: Final = "server.local.encoder_decoder"  # upon which llama-server would end itself
_HEAD_BYTES: Final = 16384
_SHUTDOWN_S: Final = 1  # for answers in progress


async def run_local_server(settings: LocalServerSettings) -> int:
    """Serve until a signal comes or the process of a model ends for good; returns the exit code."""
    async with forwarding_client() as client:
        models = Models(
            _local_models(settings), start_local_model, local_server_version(), client, settings.kept,
            log=_log_local_server, reloads=settings.reloads,
        )  # fmt: skip
        http = _Server(_local_http_config(Guard(Router(models), settings.key)))
        tasks = [
            asyncio.create_task(work)
            for work in (_wait_for_signal(), _raise_model_crash(models), _serve_local_models(models, http, settings))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    await task  # raises what ended it
        except ModelEnded as ended:
            _log_local_server(f"error: {ended}")
            _log_local_server(ended.tail)
            return ended.exit_code
        finally:
            await models.stop()  # first: no answer is waited for
            await _end_local_server(http, tasks)
    return 0


async def start_local_model(settings: ModelSettings) -> ModelProcess:
    """Start the program that can serve this model.

    Raises:
        ModelEnded: it cannot load it.
    """
    try:
        is_encoder_decoder = read_gguf_header(settings.path).is_encoder_decoder
    except (GgufError, OSError):  # llama-server says what is wrong with it
        is_encoder_decoder = False
    program = _OF_ENCODER_DECODERS if is_encoder_decoder else _PROGRAM
    return await ModelProcess.start(program, settings, _log_local_server)


async def _wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, event.set)
    await event.wait()


async def _raise_model_crash(models: Models) -> None:
    raise await models.crashed()


async def _end_local_server(http: _Server, tasks: list[asyncio.Task[None]]) -> None:
    signalled, crashed, serving = tasks
    http.should_exit = True
    for task in (signalled, crashed, *([] if http.started else [serving])):
        task.cancel()
    await asyncio.wait(tasks)


def local_server_version() -> str:
    """The package and the build of llama.cpp in it, which is the last number of its version."""
    package = version("xllamacpp")
    return f"xllamacpp {package} (llama.cpp b{package.split('.')[2]})"


def _local_models(settings: LocalServerSettings) -> dict[str, ModelSettings]:
    return {
        model.name: ModelSettings(
            path=model.path, name=model.name, projector=model.projector, context_size=settings.context_size,
            parallel=settings.parallel,
            threads=settings.threads or physical_cores(), n_gpu_layers=settings.n_gpu_layers,
            cache_type=settings.cache_type,
        )
        for model in settings.models
    }  # fmt: skip


async def _serve_local_models(models: Models, http: _Server, settings: LocalServerSettings) -> None:
    await models.load_first()
    listening = socket.create_server((_HOST, settings.port))
    _log_local_server(f"{models.server} serves {', '.join(models.models)} on http://{_HOST}:{settings.port}/v1")
    _log_local_server(_local_server_promises(settings))
    _allow_many_connections()
    await http.serve([listening])


def _local_server_promises(settings: LocalServerSettings) -> str:
    """What each request may have, and how many models stay loaded."""
    each = settings.context_size // settings.parallel
    tokens = f"with {each} tokens of context for each" if each else "with the context that the model was trained with"
    kept, n = settings.kept, len(settings.models)
    loaded = f"; {kept} of {n} models loaded at once, for which others are unloaded once idle" if kept < n else ""
    return f"{settings.parallel} requests of a model at once, {tokens}{loaded}"


def _local_http_config(app: Guard) -> uvicorn.Config:
    """The guard prints errors itself; uvicorn's log would have a line for every client that leaves in an answer."""
    protocol: Any = partial(LimitedProtocol, Connections())
    return uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", h11_max_incomplete_event_size=_HEAD_BYTES, server_header=False,
        access_log=False, log_level="critical", timeout_graceful_shutdown=_SHUTDOWN_S,
    )


class _Server(uvicorn.Server):  # type: ignore[misc]  # uvicorn is only in .venv-local
    """uvicorn's server; signals are handled by `run_local_server`, which has other processes to end too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _allow_many_connections() -> None:
    """Raise the limit of open files: each connection takes two, and the usual limit is below ours."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * Connections.in_all
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), hard))


def _log_local_server(text: str) -> None:
    if text:
        print(f"[serve] {text}", file=sys.stderr, flush=True)  # noqa: T201 (the program's log)


if __name__ == "__main__":
    sys.exit(asyncio.run(run_local_server(LocalServerSettings.model_validate_json(Path(sys.argv[1]).read_bytes()))))
