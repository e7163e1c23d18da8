"""What one stage may have of a cluster of Kubernetes: from its nodes where we may list them, else from the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from quantyard.batch.errors import KubeRefused
from quantyard.batch.kube_api import KubeApi
from quantyard.engines.capacity import Capacity
from quantyard.errors import EngineError
from quantyard.requests import KubeRequest

_MOST_JOBS: Final = 64  # of one run in the queue at a time
_OTHERS_CPUS: Final = 1  # of a node, for what runs on every node
_OTHERS_MEMORY: Final = 0.1
_CLOSED: Final = ("NoSchedule", "NoExecute")


def kube_capacity(api: KubeApi, kube: KubeRequest) -> Capacity:
    """What one Job may use. The nodes that KUBE_NODES chooses count as one kind of machine, that of the smallest.

    Raises:
        EngineError: no node takes our Jobs; or we may not list nodes, and no setting says what a stage may have.
    """
    kind = " ".join(["kubernetes", *(f"{name}={value}" for name, value in sorted(kube.nodes.items()))])
    try:
        chosen = ",".join(f"{name}={value}" for name, value in sorted(kube.nodes.items()))
        nodes = api.core("list_node", label_selector=chosen)["items"]
    except KubeRefused as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        if not (kube.cpus and kube.memory_bytes):
            message = "Kubernetes does not let you list nodes, so what a stage may have is not known."
            hint = "Say it: KUBE_CPUS_PER_STAGE=8 KUBE_MEMORY_PER_STAGE=32GiB"
            raise EngineError(message, hint) from error
        return Capacity(kind, kube.cpus, kube.memory_bytes, _MOST_JOBS, nodes=_MOST_JOBS)
    return _capacity_of_nodes(nodes, kube, kind)


def _capacity_of_nodes(nodes: Sequence[Mapping[str, Any]], kube: KubeRequest, kind: str) -> Capacity:
    usable = [node["status"]["allocatable"] for node in nodes if _takes_pods(node)]
    if not usable:
        message = f"None of {len(nodes)} nodes takes Jobs: they are not ready, or closed by taints."
        raise EngineError(message, "See them: kubectl get nodes --show-labels; choose others: KUBE_NODES=label=value")
    most_cpus = min(int(_quantity(node["cpu"])) for node in usable)
    cpus = min(kube.cpus or max(1, most_cpus - _OTHERS_CPUS), most_cpus)
    most_bytes = min(int(_quantity(node["memory"])) for node in usable)
    memory_bytes = min(kube.memory_bytes or int(most_bytes * (1 - _OTHERS_MEMORY)), most_bytes)
    jobs = min(len(usable) * max(1, most_cpus // cpus), _MOST_JOBS)
    return Capacity(kind, cpus, memory_bytes, jobs, nodes=jobs)


def _takes_pods(node: Mapping[str, Any]) -> bool:
    spec = node.get("spec", {})
    ready = any(row["type"] == "Ready" and row["status"] == "True" for row in node["status"].get("conditions", ()))
    closed = spec.get("unschedulable") or any(taint["effect"] in _CLOSED for taint in spec.get("taints") or ())
    return ready and not closed


def _quantity(text: str) -> Any:
    from kubernetes.utils import parse_quantity

    return parse_quantity(text)
