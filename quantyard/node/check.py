"""Examines this machine as a node: what a stage would find here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Final

from quantyard.engines import Engine
from quantyard.engines.images import engine_code_version
from quantyard.errors import EngineError
from quantyard.hardware.machine import machine_memory_bytes
from quantyard.node.run import NodePlace
from quantyard.protocol.node_spec import NodeCheck

CHECKED_IMAGES: Final = ("builder", "eval")


def examine_node(place: NodePlace, engine: Engine, images: Sequence[str]) -> NodeCheck:
    """What this node has.

    Raises:
        EngineError: its scratch folder cannot be written.
    """
    try:
        place.scratch.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(place.scratch).free
    except OSError as error:
        message = f"{place.host} cannot use SCRATCH={place.scratch}: {error.strerror}."
        raise EngineError(message, "Name a folder that this user may write on every node: SCRATCH=/path") from error
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return NodeCheck(
        host=place.host, cpus=cpus, memory_bytes=machine_memory_bytes(), scratch_free_bytes=free_bytes,
        engine=engine.name, code={image: engine_code_version(place.repo_dir, image) for image in images},
        tools={image: place.tools_identity(engine, image) or "" for image in images},
    )
