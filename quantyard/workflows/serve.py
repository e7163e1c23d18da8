"""Serves the built files until the server is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR
from quantyard.requests import BuildRequest
from quantyard.serve.compose_profile import compose_environment
from quantyard.serve.run import serve_compose, serve_local
from quantyard.serve.served_files import served_files
from quantyard.workflows.planning import workflow_engine
from quantyard.workflows.reporter import WorkflowReporter


def serve(request: BuildRequest, environment: Mapping[str, str], reporter: WorkflowReporter) -> int:
    """Run the server until it ends; returns its exit code.

    Args:
        environment: the environment of the server's process; compose.yaml reads its settings there.

    Raises:
        BadRequest: there is nothing to serve, or the port is taken.
        EngineError: the server cannot be started, or fails.
    """
    engine, _reason = workflow_engine(request)
    with reporter.steps() as steps:
        engine.prepare("server", steps.note)
    if engine.name == "docker":
        files = list[Path]()
        with suppress(BadRequest):  # there is nothing, which the container says in its own words
            files = served_files(request.artifacts, request.serve.model_file if request.serve else None)
        return serve_compose(REPO_DIR, compose_environment(environment, files))
    return serve_local(request, request.environment.venv / "bin" / "python", environment)
