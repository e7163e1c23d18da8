"""Runs one stage on this node of a cluster, or says what the node has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quantyard.engines.registry import choose_engine
from quantyard.node.check import CHECKED_IMAGES, examine_node
from quantyard.node.run import NodePlace, read_node_spec, run_node_spec
from quantyard.protocol.base import StageResult
from quantyard.protocol.node_spec import NodeCheck
from quantyard.requests import BuildRequest
from quantyard.shared_store.open_store import open_object_store


def run_node(
    request: BuildRequest, spec_name: str, host: str, job: str, on_note: Callable[[str], None]
) -> StageResult:
    """Run a spec of the shared store here, and commit its result.

    Args:
        host: the name of this node in the queue.
        job: the job of the queue that this is; "" outside of one.

    Raises:
        QuantyardError: see `run_node_spec`.
    """
    store = open_object_store(request.cluster.store)
    engine, _ = choose_engine(request.engine, request.environment, request.images)
    place = NodePlace(store, Path(request.cluster.scratch), request.environment.repo_dir, host, job)
    return run_node_spec(read_node_spec(store, spec_name), place, engine, on_note)


def check_node(request: BuildRequest, name: str, host: str) -> NodeCheck:
    """Examine this node, and put what is found into the shared store.

    Args:
        name: of the object to write.

    Raises:
        QuantyardError: the store, the folder SCRATCH or the engine cannot be used.
    """
    store = open_object_store(request.cluster.store)
    engine, _ = choose_engine(request.engine, request.environment, request.images)
    place = NodePlace(store, Path(request.cluster.scratch), request.environment.repo_dir, host)
    found = examine_node(place, engine, CHECKED_IMAGES)
    store.put(name, found.model_dump_json().encode())
    return found
