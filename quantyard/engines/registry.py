"""Chooses the engine: `auto` is docker if a daemon answers, else local."""

from __future__ import annotations

from quantyard.engines import Engine
from quantyard.engines.secrets import remove_engine_leftovers
from quantyard.errors import EngineError
from quantyard.requests import EngineName, ImageSettings, RunEnvironment


def choose_engine(name: EngineName, environment: RunEnvironment, images: ImageSettings) -> tuple[Engine, str]:
    """The engine, and why it was chosen.

    Raises:
        EngineError: docker was requested, and no daemon answers.
    """
    remove_engine_leftovers()
    if name == "local":
        return _local_engine(environment), "asked for"
    from quantyard.engines.docker_engine import DockerEngine  # each engine is imported where it is chosen

    try:
        return DockerEngine(environment, images), "a daemon answers" if name == "auto" else "asked for"
    except EngineError:
        if name == "docker":
            raise
        return _local_engine(environment), "no Docker daemon answers"


def _local_engine(environment: RunEnvironment) -> Engine:
    from quantyard.engines.local import LocalEngine

    return LocalEngine(environment)
