"""Which engine runs the stages: `auto` is docker wherever a daemon answers."""

from __future__ import annotations

from quantyard.engines import Engine
from quantyard.engines.local import LocalEngine
from quantyard.engines.secrets import clear_leftovers
from quantyard.errors import EngineError
from quantyard.requests import EngineName, ImageSettings, RunEnvironment


def choose_engine(name: EngineName, environment: RunEnvironment, images: ImageSettings) -> tuple[Engine, str]:
    """The engine and the reason for it.

    Raises:
        EngineError: docker was asked for, and no daemon answers.
    """
    clear_leftovers()
    if name == "local":
        return LocalEngine(environment), "asked for"
    from quantyard.engines.docker import DockerEngine  # imported late: the SDK costs 0.2 s that `local` need not pay

    try:
        return DockerEngine(environment, images), "a daemon answers" if name == "auto" else "asked for"
    except EngineError:
        if name == "docker":
            raise
        return LocalEngine(environment), "no Docker daemon answers"
