"""Which engine runs the stages: `auto` is docker wherever a daemon answers."""

from __future__ import annotations

from quantyard.engines import Engine, EngineName, Surroundings
from quantyard.engines.images import ImageSettings
from quantyard.engines.local import LocalEngine
from quantyard.engines.secrets import clear_leftovers
from quantyard.errors import EngineError


def choose_engine(name: EngineName, around: Surroundings, images: ImageSettings) -> tuple[Engine, str]:
    """The engine and the reason for it.

    Raises:
        EngineError: docker was asked for, and no daemon answers.
    """
    clear_leftovers()
    if name == "local":
        return LocalEngine(around), "asked for"
    from quantyard.engines.docker import DockerEngine  # imported late: the SDK costs 0.2 s that `local` need not pay

    try:
        return DockerEngine(around, images), "a daemon answers" if name == "auto" else "asked for"
    except EngineError:
        if name == "docker":
            raise
        return LocalEngine(around), "no Docker daemon answers"
