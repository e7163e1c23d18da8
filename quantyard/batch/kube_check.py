"""Examines a namespace of Kubernetes: what we may do there, what was made for us, and what a pod finds on a node."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from quantyard.batch.errors import KubeRefused
from quantyard.batch.kube_api import KubeApi
from quantyard.batch.kube_job import NETWORK, KubePlace, kube_node_job, kube_store_network
from quantyard.batch.kube_queue import KubeQueue
from quantyard.errors import EngineError
from quantyard.protocol.node_spec import NodeCheck, NodeResources
from quantyard.requests import KubeRequest
from quantyard.shared_store.objects import ObjectStore

_MEMORY_BYTES: Final = 2**30
_TIMEOUT_S: Final = 180.0
_LIMIT_S: Final = 300.0
_STEP_S: Final = 1.5

_KUEUE: Final = "kueue.x-k8s.io"
_KUEUE_VERSIONS: Final = ("v1beta2", "v1beta1")

# What a run does: verb, group, resource. To add one: add a row, and the page's Role.
NEEDED_RIGHTS: Final = (
    ("create", "batch", "jobs"), ("get", "batch", "jobs"), ("list", "batch", "jobs"), ("delete", "batch", "jobs"),
    ("list", "", "pods"), ("get", "", "pods/log"), ("get", "networking.k8s.io", "networkpolicies"),
    ("create", "networking.k8s.io", "networkpolicies"), ("update", "networking.k8s.io", "networkpolicies"),
)  # fmt: skip


@dataclass(frozen=True)
class NamedThing:
    """A Secret, a claim or a queue that a setting names; `there` is None where we may not look."""

    setting: str
    name: str
    there: bool | None
    note: str = ""


def missing_kube_rights(api: KubeApi) -> list[str]:
    """The rights that a run needs and we lack, as kubectl writes them: `create jobs.batch`."""
    lacking = [(verb, group, kind) for verb, group, kind in NEEDED_RIGHTS if not api.may(verb, group, kind)]
    return [f"{verb} {kind}{'.' if group else ''}{group}" for verb, group, kind in lacking]


def examine_kube_things(api: KubeApi, kube: KubeRequest) -> Sequence[NamedThing]:
    """Whether the Secrets, the claim and the queue of the settings are in the namespace."""
    secrets = (
        ("KUBE_HF_SECRET", kube.hf_secret), ("KUBE_S3_SECRET", kube.s3_secret), ("KUBE_PULL_SECRET", kube.pull_secret),
    )  # fmt: skip
    found = [_examine_secret(api, setting, name) for setting, name in secrets if name]
    if kube.claim:
        found.append(_examine_claim(api, kube))
    if kube.queue:
        found.append(_examine_local_queue(api, kube.queue))
    return found


def _examine_secret(api: KubeApi, setting: str, name: str) -> NamedThing:
    try:
        return NamedThing(setting, name, api.has_secret(name))
    except KubeRefused as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        return NamedThing(setting, name, None)


def _examine_claim(api: KubeApi, kube: KubeRequest) -> NamedThing:
    name = kube.claim.partition("/")[0]
    try:
        claim = api.core("read_namespaced_persistent_volume_claim", name, api.namespace)
    except KubeRefused as error:
        if error.status not in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise
        return NamedThing("KUBE_CLAIM", name, False if error.status == HTTPStatus.NOT_FOUND else None)
    modes = claim.get("spec", {}).get("accessModes") or []
    note = "" if "ReadWriteMany" in modes else f"only {', '.join(modes)}: not all nodes can mount it"
    return NamedThing("KUBE_CLAIM", name, there=True, note=note)


def _examine_local_queue(api: KubeApi, name: str) -> NamedThing:
    """Kueue's LocalQueue, in the newest version that the cluster serves, and whether it takes Jobs now."""
    for version in _KUEUE_VERSIONS:
        try:
            queue = api.custom("get", _KUEUE, version, "localqueues", name)
        except KubeRefused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                continue
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            return NamedThing("KUBE_QUEUE", name, None)
        conditions = queue.get("status", {}).get("conditions") or []
        active = next((row for row in conditions if row.get("type") == "Active"), {"status": "True"})
        why = "" if active["status"] == "True" else f"it takes no Jobs now: {active.get('message', 'no reason given')}"
        return NamedThing("KUBE_QUEUE", name, there=True, note=why)
    return NamedThing("KUBE_QUEUE", name, there=False)


def examine_kube_node(
    queue: KubeQueue, kube: KubeRequest, place: KubePlace, store: ObjectStore, name: str
) -> NodeCheck:
    """What the pod has that Kubernetes gives to a small Job, with the image and the hardening of stages.

    Args:
        name: of the object in the store that the pod writes.

    Raises:
        EngineError: no pod has answered within three minutes, or the image cannot run Quantyard.
    """
    queue.close_network()
    network = kube_store_network(place, kube)
    job = kube_node_job(
        f"quantyard-check-{name.rpartition('-')[2][:16].lower()}", ["check", name], kube, place,
        NodeResources(cpus=1, memory_bytes=_MEMORY_BYTES), labels={NETWORK: network}, annotations={}, limit_s=_LIMIT_S,
    )  # fmt: skip
    made = queue.api.batch("create_namespaced_job", queue.api.namespace, job)
    job_id = f"{made['metadata']['name']}/{made['metadata']['uid']}"
    try:
        return _wait_for_check(queue, job_id, store, name)
    finally:
        queue.cancel([job_id])
        store.remove(name)


def _wait_for_check(queue: KubeQueue, job_id: str, store: ObjectStore, name: str) -> NodeCheck:
    until = time.monotonic() + _TIMEOUT_S
    while True:
        status = queue.poll([job_id])[job_id]
        if status.state == "ended" and status.exit_code == 0:
            return _read_check(store, name)
        if status.state in ("ended", "lost"):
            why = status.reason or status.fate or "it is gone"
            message = f"The pod of {job_id.partition('/')[0]} failed: {why}."
            raise EngineError(message, status.hint or "Its last lines are above.", queue.log_of(job_id))
        if time.monotonic() > until:
            message = f"No pod has answered within three minutes: {status.reason or status.state}."
            raise EngineError(message, status.hint or "See why it waits: kubectl describe pods")
        time.sleep(_STEP_S)


def _read_check(store: ObjectStore, name: str) -> NodeCheck:
    try:
        return NodeCheck.model_validate_json(store.read_bytes(name))
    except FileNotFoundError as error:
        message = f"The pod wrote its answer into another store: {store.url} is not what the claim holds."
        hint = "Name the volume claim that STORE is on, and the folder in it: KUBE_CLAIM=name/folder"
        raise EngineError(message, hint) from error
