"""Serves the built files until the server is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR
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
from quantyard.store.manifest import QuantRecord, read_manifest
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


def _built_files_to_serve(request: BuildRequest) -> list[Path]:
    source = workflow_source(request)
    folder = ModelStore(request.artifacts, source.model).folder
    manifest = read_manifest(folder / "manifest.json")
    asked = [quant.name for quant in request.quants] if request.quants_given else []
    built = manifest.quants if manifest else dict[str, QuantRecord]()
    names = asked or list(built)
    wanted = f"make build MODEL={request.model} QUANT={','.join(asked) or 'Q4_K_M'}"
    missing = ", ".join(name for name in names if name not in built)
    if missing or not names:
        message = f"{missing} is not built in {folder}." if missing else f"Nothing is built in {folder}."
        raise BadRequest(message, f"Build it: {wanted}")
    local = source.local.folder if source.local else None
    paths = [(folder if built[name].made_by or local is None else local) / built[name].file for name in names]
    if gone := [path for path in paths if not path.is_file()]:
        raise BadRequest(f"{gone[0]} is gone.", f"Make it again: {wanted}")
    projector = manifest.projector if manifest else None
    return [*paths, *(folder / entry.path for entry in (projector.files[:1] if projector else ()))]
