"""Checks a cluster: its queue, the shared store, and the tools of a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from quantyard.batch.batch_engine import BatchEngine
from quantyard.batch.slurm_check import examine_slurm_node
from quantyard.engines.images import engine_code_version
from quantyard.engines.registry import choose_engine
from quantyard.errors import QuantyardError
from quantyard.files.unique_names import new_process_mark
from quantyard.formatting.numbers import format_bytes, format_memory
from quantyard.node.check import CHECKED_IMAGES
from quantyard.protocol.node_spec import NodeCheck
from quantyard.requests import BuildRequest
from quantyard.shared_store.open_store import open_object_store
from quantyard.workflows.cluster import workflow_cluster_engine, workflow_pushed_images, workflow_slurm_place
from quantyard.workflows.doctor_finding import DoctorFinding
from quantyard.workflows.shared_store import workflow_store_finding

_LITTLE_SCRATCH_BYTES: Final = 20 * 10**9


def examine_cluster(request: BuildRequest) -> list[DoctorFinding]:
    """Findings on the queue, the store and a node. Without a queue or a store, no node is asked."""
    found = list[DoctorFinding]()
    registry = (_examine_registry,) * bool(request.cluster.registry)
    for check in (_examine_queue, _examine_shared_store, *registry, _examine_node_tools):
        try:
            found.append(check(request))
        except QuantyardError as error:
            name = check.__name__.removeprefix("_examine_").replace("_", " ")
            found.append(DoctorFinding(_NAMES.get(name, name), "missing", error.message, error.hint))
            break
    return found


_NAMES: Final = {"queue": "Slurm", "node tools": "node"}


def _examine_queue(request: BuildRequest) -> DoctorFinding:
    capacity = workflow_cluster_engine(request).capacity()
    size = format_memory(capacity.memory_bytes)
    value = f"{capacity.nodes} nodes of at least {capacity.cpus} CPUs and {size} ({capacity.cpu})"
    return DoctorFinding("Slurm", "ok", value)


def _examine_shared_store(request: BuildRequest) -> DoctorFinding:
    return workflow_store_finding(workflow_slurm_place(request).store_url)


def _examine_registry(request: BuildRequest) -> DoctorFinding:
    from quantyard.engines.docker_images import registry_has_image  # the SDK, only where it is needed

    tools, _ = choose_engine("docker", request.environment, request.images)
    images = workflow_pushed_images(request, tools)
    assert images is not None
    built = [image for image in CHECKED_IMAGES if tools.identity(image)]
    there = [image for image in built if images.pushed_reference(image)]
    registry_has_image(f"{images.repository('builder')}:latest")  # raises if nothing answers
    missing = [image for image in CHECKED_IMAGES if image not in there]
    value = f"{request.cluster.registry} answers, and has {', '.join(there) or 'no image of this machine'}"
    return DoctorFinding("registry", "ok", f"{value}; pushed when needed: {', '.join(missing) or 'nothing'}")


def _examine_node_tools(request: BuildRequest) -> DoctorFinding:
    engine, place = workflow_cluster_engine(request), workflow_slurm_place(request)
    store = open_object_store(place.store_url)
    found = examine_slurm_node(request.cluster, place, store, f"checks/{new_process_mark()}")
    size, free = format_memory(found.memory_bytes), format_bytes(found.scratch_free_bytes)
    value = f"{found.host}: {found.cpus} CPUs, {size}, {free} free in {request.cluster.scratch}"
    if problem := _tools_problem(found, engine, request, CHECKED_IMAGES):
        return DoctorFinding("node", "missing", f"{value}; {problem}", _remedy(request))
    if found.scratch_free_bytes < _LITTLE_SCRATCH_BYTES:
        return DoctorFinding("node", "note", value, "A 7B model needs about 50 GB; another folder: SCRATCH=/path")
    return DoctorFinding("node", "ok", f"{value}; the tools are those of this machine")


def _tools_problem(found: NodeCheck, engine: BatchEngine, request: BuildRequest, images: Sequence[str]) -> str:
    repo_dir = request.environment.repo_dir
    if any(found.code[image] != engine_code_version(repo_dir, image) for image in images):
        return "it has another version of Quantyard"
    if found.registry:
        return f"it cannot pull images: {found.registry}"
    has = (image for image in images if found.tools[image] or not request.cluster.registry)  # the others are pulled
    other = [image for image in has if found.tools[image] != (engine.identity(image) or "")]
    return f"it has other tools than this machine ({', '.join(other)})" if other else ""


def _remedy(request: BuildRequest) -> str:
    if request.cluster.node_engine != "local":
        return "Let nodes pull the images of this machine from a registry: NODE_REGISTRY=host:port/path"
    return f"Share one folder with Quantyard, or type on each node: make images ENGINE={request.cluster.node_engine}"
