"""Runs one stage on this node of a cluster, or says what the node has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantyard.engines.registry import choose_engine
from quantyard.node.check import CHECKED_IMAGES, examine_node
from quantyard.node.run import NodePlace, read_node_spec, run_node_spec
from quantyard.protocol.base import StageResult
from quantyard.protocol.node_spec import NodeCheck
from quantyard.requests import BuildRequest
from quantyard.shared_store.objects import ObjectStore
from quantyard.shared_store.open_store import open_object_store


@dataclass(frozen=True)
class ThisNode:
    """Names of this machine and of the job that this is, in the queue; of a pod, also its image by digest."""

    host: str
    job: str = ""
    image: str = ""


def run_node(
    request: BuildRequest, spec_name: str, node: ThisNode, on_note: Callable[[str], None]
) -> StageResult:
    """Run a spec of the shared store here, and commit its result.

    Raises:
        QuantyardError: see `run_node_spec`.
    """
    store = open_object_store(request.cluster.store)
    engine, _ = choose_engine(request.engine, request.environment, request.images)
    place = _place_of_node(request, store, node)
    return run_node_spec(read_node_spec(store, spec_name), place, engine, on_note)


def check_node(request: BuildRequest, name: str, node: ThisNode) -> NodeCheck:
    """Examine this node, and put what is found into the shared store.

    Args:
        name: of the object to write.

    Raises:
        QuantyardError: the store, the folder SCRATCH or the engine cannot be used.
    """
    store = open_object_store(request.cluster.store)
    engine, _ = choose_engine(request.engine, request.environment, request.images)
    found = examine_node(_place_of_node(request, store, node), engine, CHECKED_IMAGES)
    store.put(name, found.model_dump_json().encode())
    return found


def _place_of_node(request: BuildRequest, store: ObjectStore, node: ThisNode) -> NodePlace:
    scratch = Path(request.cluster.scratch)
    return NodePlace(store, scratch, request.environment.repo_dir, node.host, node.job, node.image)
