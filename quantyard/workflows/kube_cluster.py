"""Makes the engine of a cluster of Kubernetes from a request, and examines that cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quantyard.batch.batch_engine import BatchEngine
from quantyard.batch.kube_check import examine_kube_node, examine_kube_things, missing_kube_rights
from quantyard.batch.kube_job import KubePlace
from quantyard.batch.kube_queue import KubeQueue
from quantyard.batch.kube_tools import KubeTools
from quantyard.engines.images import engine_code_version
from quantyard.engines.registry import choose_engine
from quantyard.errors import QuantyardError
from quantyard.files.unique_names import new_process_mark
from quantyard.formatting.numbers import format_bytes, format_memory
from quantyard.node.check import CHECKED_IMAGES
from quantyard.protocol.node_spec import image_identity
from quantyard.requests import BuildRequest
from quantyard.shared_store.open_store import open_object_store
from quantyard.workflows.doctor_finding import DoctorFinding
from quantyard.workflows.shared_store import workflow_store_finding

_KUBERNETES = "Kubernetes"
_RIGHTS = "permissions"
_PAGE = "The page 'Run on Kubernetes' has a Role with all of them."


def workflow_kube_engine(request: BuildRequest) -> BatchEngine:
    """The engine that runs stages as Jobs of Kubernetes.

    Raises:
        BadRequest: STORE, the kubeconfig or the package kubernetes cannot be used.
    """
    queue, place = _queue_and_place(request)
    tools = KubeTools(request.cluster, lambda: choose_engine("auto", request.environment, request.images)[0])
    return BatchEngine(queue, open_object_store(place.store_url), tools, request.cluster, request.environment)


def _queue_and_place(request: BuildRequest) -> tuple[KubeQueue, KubePlace]:
    place = KubePlace(request.cluster.store, request.cluster.variables)
    return KubeQueue(request.cluster.kube, place), place


def examine_kube_cluster(request: BuildRequest) -> list[DoctorFinding]:
    """Findings on the API, our rights, the Secrets and the claim, the store, the nodes, and a pod on one of them. What
    depends on one that is missing is not examined.
    """
    found = list[DoctorFinding]()
    for what, check in _CHECKS:
        try:
            found += check(request)
        except QuantyardError as error:
            found.append(DoctorFinding(what, "missing", error.message, error.hint))
        if any(finding.state == "missing" for finding in found):
            break
    return found


def _examine_api(request: BuildRequest) -> Sequence[DoctorFinding]:
    api = _queue_and_place(request)[0].api
    version = api.version().get("gitVersion", "of unknown version")
    return [DoctorFinding(_KUBERNETES, "ok", f"{version} at {api.server}, namespace {api.namespace}")]


def _examine_rights(request: BuildRequest) -> Sequence[DoctorFinding]:
    api = _queue_and_place(request)[0].api
    if missing := missing_kube_rights(api):
        value = f"you may not, in the namespace {api.namespace}: {', '.join(missing)}"
        return [DoctorFinding(_RIGHTS, "missing", value, f"Ask who runs the cluster. {_PAGE}")]
    return [DoctorFinding(_RIGHTS, "ok", f"all that runs need in the namespace {api.namespace}")]


def _examine_things(request: BuildRequest) -> Sequence[DoctorFinding]:
    api, found = _queue_and_place(request)[0].api, []
    for thing in examine_kube_things(api, request.cluster.kube):
        what = f"{thing.setting}={thing.name}"
        if thing.there is None:
            value = "you may not look whether it is there"
            found.append(DoctorFinding(what, "note", value, "A pod that lacks it says so."))
        elif not thing.there:
            value = f"it is not in the namespace {api.namespace}"
            found.append(DoctorFinding(what, "missing", value, "Make it as the page 'Run on Kubernetes' shows."))
        else:
            found.append(DoctorFinding(what, "note" if thing.note else "ok", thing.note or "it is there"))
    return found


def _examine_store(request: BuildRequest) -> Sequence[DoctorFinding]:
    return [workflow_store_finding(request.cluster.store)]


def _examine_nodes(request: BuildRequest) -> Sequence[DoctorFinding]:
    capacity = _queue_and_place(request)[0].capacity()
    size = format_memory(capacity.memory_bytes)
    value = f"{capacity.nodes} stages at a time, each at most {capacity.cpus} CPUs and {size} ({capacity.cpu})"
    return [DoctorFinding("nodes", "ok", value)]


def _examine_pod(request: BuildRequest) -> Sequence[DoctorFinding]:
    queue, place = _queue_and_place(request)
    store, kube = open_object_store(place.store_url), request.cluster.kube
    found = examine_kube_node(queue, kube, place, store, f"checks/{new_process_mark()}")
    value = f"on {found.host}, {format_bytes(found.scratch_free_bytes)} free for stages"
    repo_dir = request.environment.repo_dir
    if any(found.code[image] != engine_code_version(repo_dir, image) for image in CHECKED_IMAGES):
        remedy = "Build and push the image from this version, and name the new digest: KUBE_IMAGE=…"
        return [DoctorFinding("pod", "missing", f"{value}; the image has another version of Quantyard", remedy)]
    if any(tools != image_identity(kube.image) for tools in found.tools.values()):
        return [DoctorFinding("pod", "missing", f"{value}; it does not know its image", "Build the image anew.")]
    return [DoctorFinding("pod", "ok", f"{value}; hardened, with the image {kube.image}")]


# To add a check: add a function, and a row with the name of its finding where it fails.
_CHECKS: tuple[tuple[str, Callable[[BuildRequest], Sequence[DoctorFinding]]], ...] = (
    (_KUBERNETES, _examine_api), (_RIGHTS, _examine_rights), ("Secrets", _examine_things),
    ("shared store", _examine_store), ("nodes", _examine_nodes), ("pod", _examine_pod),
)  # fmt: skip
