"""Runs one stage on this node of a cluster, or says what the node has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from quantyard.engines import Engine
from quantyard.engines.podman_service import podman_service
from quantyard.engines.registry import choose_engine
from quantyard.errors import QuantyardError
from quantyard.node.check import CHECKED_IMAGES, examine_node
from quantyard.node.run import NodePlace, read_node_spec, run_node_spec
from quantyard.protocol.base import StageResult
from quantyard.protocol.node_spec import NodeCheck, NodeEngine
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
    spec, place = read_node_spec(store, spec_name), _place_of_node(request, store, node)
    with _engine_of_node(request, spec.engine, spec.pull) as engine:
        return run_node_spec(spec, place, engine, on_note)


@contextmanager
def _engine_of_node(request: BuildRequest, kind: NodeEngine, pull: str) -> Iterator[Engine]:
    """What runs a stage here: with `pull`, containers of that image in a registry; else the tools of this machine."""
    with podman_service() if kind == "podman" else nullcontext():
        if pull:
            from quantyard.engines.pulled_engine import PulledEngine  # other nodes need none of it

            yield PulledEngine(request.environment, request.images, pull, kind)
        else:
            yield choose_engine(request.engine, request.environment, request.images)[0]


def check_node(request: BuildRequest, name: str, node: ThisNode) -> NodeCheck:
    """Examine this node, and put what is found into the shared store.

    Args:
        name: of the object to write.

    Raises:
        QuantyardError: the store, the folder SCRATCH or the engine cannot be used.
    """
    store, cluster = open_object_store(request.cluster.store), request.cluster
    with _engine_of_node(request, cluster.node_engine, "") as engine:
        found = examine_node(_place_of_node(request, store, node), engine, CHECKED_IMAGES)
    if cluster.registry and cluster.node_engine == "docker":
        found = found.model_copy(update={"registry": _registry_problem(cluster.registry)})
    store.put(name, found.model_dump_json().encode())
    return found


def _registry_problem(registry: str) -> str:
    """Why the daemon of this machine cannot ask the registry; "" if it can."""
    from quantyard.engines.docker_images import registry_has_image  # the SDK, only where it is needed

    try:
        registry_has_image(f"{registry}/quantyard-builder:latest")
    except QuantyardError as error:
        return error.message
    return ""


def _place_of_node(request: BuildRequest, store: ObjectStore, node: ThisNode) -> NodePlace:
    scratch = Path(request.cluster.scratch)
    return NodePlace(store, scratch, request.environment.repo_dir, node.host, node.job, node.image)
