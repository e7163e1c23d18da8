"""`make serve`: serves the last build with an OpenAI API, on the loopback interface.

With Docker through compose.yaml. Without it through llama.cpp's server out of the package xllamacpp, with the same
checks, files, key and client (server/local/server.py).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantyard.errors import BadRequest, EngineError
from quantyard.paths import REPO_DIR
from quantyard.protocol.aborts import crash_words
from quantyard.protocol.api_tests import LocalModel, LocalServerSettings
from quantyard.requests import BuildRequest
from quantyard.serve.context import decide_served_context
from quantyard.serve.served_files import (
    fits_projector,
    served_api_key,
    served_files,
    served_model_name,
    served_projector,
)

HOST = "127.0.0.1"
_CRASHED = "Its output above says where. Start it again; if llama.cpp crashes on this file again, serve another quant."
_NOT_LOADED = "Its output above says why. The file may be truncated: compare its SHA-256 with manifest.json."


def serve_compose(repo_dir: Path, environment: Mapping[str, str], *, anew: bool = False) -> int:
    """Run `docker compose up` until it ends; returns its exit code.

    Args:
        anew: the served files have changed, and containers that run already have to start with the new ones.
    """
    more = ["--force-recreate"] if anew else []
    return _run_server(["docker", "compose", "up", *more], repo_dir, environment)


def serve_local(request: BuildRequest, python: Path, environment: Mapping[str, str]) -> int:
    """Run the local server until it ends. The key is passed in a file, because command lines are public.

    Raises:
        BadRequest: no file can be served, the key cannot be read, or the port is taken.
        EngineError: the server failed.
    """
    serve = request.serve
    assert serve is not None
    files = served_files(request.artifacts, serve.model_file)
    projector = served_projector(request.artifacts, serve.model_file, serve.mmproj_file)
    key = served_api_key(request.artifacts)
    check_served_port(serve.port)
    context = decide_served_context(files, serve.context_size, cache_type=serve.cache_type)
    settings = LocalServerSettings(
        port=serve.port, key=key, threads=request.threads, n_gpu_layers=serve.n_gpu_layers,
        context_size=context.context_size, parallel=context.parallel, kept=context.kept,
        cache_type=serve.cache_type, reloads=True,
        models=tuple(_served_local_model(path, projector) for path in files),
    )
    with tempfile.TemporaryDirectory(prefix="quantyard-") as folder:
        settings_file = Path(folder) / "server.json"
        settings_file.touch(mode=0o600)
        settings_file.write_text(settings.model_dump_json())
        # -P: modules of the working directory cannot replace libraries
        argv = [str(python), "-P", "-m", "server.local.server", str(settings_file)]
        code = _run_server(argv, request.artifacts, {**environment, "PYTHONPATH": str(REPO_DIR)})
    if code != 0:
        names = ", ".join(path.name for path in files)
        crashed = crash_words(code, "")
        message = f"The server {crashed or f'ended with exit code {code}'} while it served {names}."
        raise EngineError(message, _CRASHED if crashed else _NOT_LOADED)
    return 0


def _served_local_model(path: Path, projector: Path | None) -> LocalModel:
    fits = projector.resolve() if projector and fits_projector(path, projector) else None
    return LocalModel(path=path.resolve(), name=served_model_name(path), projector=fits)


def check_served_port(port: int) -> None:
    """Refuse a port of loopback that another program listens on.

    Raises:
        BadRequest: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            message = f"Port {port} of {HOST} is taken: {error.strerror}."
            hint = f"Stop the program that listens there, or choose another port: make serve PORT={port + 1}"
            raise BadRequest(message, hint) from error


def _run_server(argv: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Run the program until it ends. Ctrl-C reaches it too; then wait for its orderly shutdown."""
    try:
        process = subprocess.Popen(argv, cwd=folder, env=dict(environment))
    except FileNotFoundError as error:
        raise EngineError(f"{argv[0]} is not installed.", "See what is missing: make doctor") from error
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return 0
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
