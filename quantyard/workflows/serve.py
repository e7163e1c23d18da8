"""Serves the built files until the server is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quantyard.choose.measured_candidate import CACHE_NOT_MEASURED, why_not_with_cache
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR
from quantyard.protocol.cache_types import DEFAULT_CACHE
from quantyard.requests import BuildRequest
from quantyard.serve.compose_files import compose_environment
from quantyard.serve.run import check_served_port, serve_compose, serve_local
from quantyard.serve.served_files import (
    are_served_files,
    is_part_of_several,
    note_unserved,
    put_served_files,
    served_files,
    served_note,
)
from quantyard.store.manifest import Manifest, read_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import workflow_engine, workflow_source
from quantyard.workflows.reporter import NotServed, WorkflowReporter


def serve(request: BuildRequest, environment: Mapping[str, str], reporter: WorkflowReporter) -> int:
    """Run the server until it ends; returns its exit code. With MODEL, serve the built files of that model from now on.

    Args:
        environment: the environment of the server's process; compose.yaml reads its settings there.

    Raises:
        BadRequest: there is nothing to serve, or the port is taken.
        EngineError: the server cannot be started, or fails.
    """
    engine, _reason = workflow_engine(request)
    if engine.name == "local" and request.serve:
        check_served_port(request.serve.port)  # a server that runs there keeps its files
    _refuse_unmeasured_cache(request)
    changed = _serve_from_now_on(request) if request.model else False
    if request.model:
        note_unserved(request.artifacts, "")
    files = served_files(request.artifacts, request.serve.model_file if request.serve else None)
    with reporter.steps() as steps:
        engine.prepare("server", steps.note)
    if engine.name == "docker":
        return serve_compose(REPO_DIR, compose_environment(environment, files), anew=changed)
    if (note := served_note(request.artifacts)) and not (request.serve and request.serve.model_file):
        reporter.tell(NotServed(note))  # the container says it itself
    return serve_local(request, request.environment.venv / "bin" / "python", environment)


def _serve_from_now_on(request: BuildRequest) -> bool:
    """Put the built files of MODEL, and its projector, into the folder that is served; returns whether it changed.

    Raises:
        BadRequest: a file is not built, or cannot be linked there.
    """
    paths = _built_files_to_serve(request)
    if are_served_files(request.artifacts, paths) and sorted((request.artifacts / "served").glob("*.gguf")) == sorted(
        request.artifacts / "served" / path.name for path in paths
    ):
        return False
    if not put_served_files(request.artifacts, paths):
        message = f"{paths[0].name} cannot be linked into {request.artifacts / 'served'}: another disk, or in parts."
        where = paths[0].parent if is_part_of_several(paths[0]) else paths[0]
        raise BadRequest(message, f"Serve it where it is: MODEL_FILE={where} docker compose up")
    return True


def _refuse_unmeasured_cache(request: BuildRequest) -> None:
    """Refuse a smaller KV cache than f16 where its cost was not measured on every file that will be served.

    Raises:
        BadRequest: the type was not measured on one of them, or llama.cpp cannot run it.
    """
    cache_type = request.serve.cache_type if request.serve else DEFAULT_CACHE
    if cache_type == DEFAULT_CACHE:
        return
    if not request.model:
        message = f"CACHE_TYPE={cache_type} needs the model, to look up what it costs: {CACHE_NOT_MEASURED}."
        raise BadRequest(message, f"Type: make serve MODEL=… CACHE_TYPE={cache_type}")
    manifest, names = _built_quants_to_serve(request)
    lacking = {name: why for name in names if (why := why_not_with_cache(manifest, name, cache_type))}
    if lacking:
        message = "; ".join(f"{name} {why}" for name, why in lacking.items())
        how = f"make eval MODEL={request.model} QUANT={','.join(names)} SUITE=cache CACHE_TYPE={cache_type}"
        raise BadRequest(f"{message}.", f"Measure it: {how}")


def _built_quants_to_serve(request: BuildRequest) -> tuple[Manifest, list[str]]:
    """The manifest, and the quants to serve, which are all built.

    Raises:
        BadRequest: one of them is not built.
    """
    folder = ModelStore(request.artifacts, workflow_source(request).model).folder
    manifest = read_manifest(folder / "manifest.json")
    asked = [quant.name for quant in request.quants] if request.quants_given else []
    names = asked or list(manifest.quants if manifest else ())
    missing = ", ".join(name for name in names if manifest is None or name not in manifest.quants)
    if manifest is None or missing or not names:
        message = f"{missing} is not built in {folder}." if missing else f"Nothing is built in {folder}."
        wanted = f"make build MODEL={request.model} QUANT={','.join(asked) or 'Q4_K_M'}"
        raise BadRequest(message, f"Build it: {wanted}")
    return manifest, names


def _built_files_to_serve(request: BuildRequest) -> list[Path]:
    source = workflow_source(request)
    folder = ModelStore(request.artifacts, source.model).folder
    manifest, names = _built_quants_to_serve(request)
    built = manifest.quants
    local = source.local.folder if source.local else None
    paths = [(folder if built[name].made_by or local is None else local) / built[name].file for name in names]
    if gone := [path for path in paths if not path.is_file()]:
        wanted = f"make build MODEL={request.model} QUANT={','.join(names)}"
        raise BadRequest(f"{gone[0]} is gone.", f"Make it again: {wanted}")
    projector = manifest.projector
    return [*paths, *(folder / entry.path for entry in (projector.files[:1] if projector else ()))]
