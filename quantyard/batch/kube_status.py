"""What the API says of a Job and its pods, as the status of a job. Reads plain JSON; asks nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from quantyard.batch import Fate, JobStatus
from quantyard.batch.kube_job import KUEUE_LABEL

Json = Mapping[str, Any]

# Waits that do not end by themselves, or seldom. To add one: add a row: what the kubelet says → what to do.
_NEVER_STARTS: Final[Mapping[str, str]] = {
    "InvalidImageName": "Write it as repository@sha256:…: KUBE_IMAGE=registry/quantyard-node@sha256:…",
    "ErrImageNeverPull": "The node may not pull it; ask who runs the cluster.",
    "ImageInspectError": "The node cannot read the image; push it again.",
    "CreateContainerConfigError": "Make that Secret in the namespace, with the key of the page: kubectl get secrets",
    "CreateContainerError": "See what the node says: kubectl describe pod",
    "RunContainerError": "See what the node says: kubectl describe pod",
}
_PULL_HINT: Final = (
    "Look whether the registry has that digest, and the nodes reach it; one with a login needs KUBE_PULL_SECRET=name"
)
_NO_PULL: Final = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable")
_DISK: Final = re.compile(r"ephemeral|emptydir|disk|storage", re.IGNORECASE)
_LOST_REASONS: Final = ("NodeLost", "NodeShutdown", "Terminated", "NodeAffinity", "UnexpectedAdmissionError")


@dataclass(frozen=True)
class KubeStatus:
    """A status, and what it waits for if that must not last: an image, or a node that has stopped to answer."""

    job: JobStatus
    waits: Literal["", "image", "node"] = ""


def kube_job_status(job: Json, pods: Sequence[Json]) -> KubeStatus:
    """The status of a Job.

    Args:
        pods: those of this Job.
    """
    newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)
    conditions = _true_conditions(job)
    if "Complete" in conditions:
        return KubeStatus(JobStatus("ended", node=_node_of_pod(newest), exit_code=0))
    if job["metadata"].get("deletionTimestamp"):
        return KubeStatus(JobStatus("ended", node=_node_of_pod(newest), fate="cancelled"))
    if "Failed" in conditions:
        return KubeStatus(_failed_job(conditions["Failed"], newest))
    if job.get("spec", {}).get("suspend"):
        queue = job["metadata"].get("labels", {}).get(KUEUE_LABEL)
        return KubeStatus(JobStatus("queued", reason=f"Kueue's queue {queue}" if queue else "suspended"))
    if newest is None:
        return KubeStatus(JobStatus("queued", reason="it has no pod yet; a quota may be used up"))
    return _unfinished_pod(newest)


def is_kube_job_finished(job: Json) -> bool:
    """Whether a Job has ended, or is being deleted."""
    return bool({"Complete", "Failed"} & set(_true_conditions(job))) or bool(job["metadata"].get("deletionTimestamp"))


def _failed_job(condition: Json, pod: Json | None) -> JobStatus:
    said = str(condition.get("message") or condition.get("reason") or "")
    if condition.get("reason") == "DeadlineExceeded":
        return JobStatus("ended", reason=said, node=_node_of_pod(pod), fate="time")
    if pod is None:  # it went with its node
        return JobStatus("ended", reason=said, fate="node")
    state = pod.get("status", {})
    told = str(state.get("message") or said)
    if fate := _fate_of_pod(pod):
        return JobStatus("ended", reason=told, node=_node_of_pod(pod), fate=fate)
    ended = _terminated_container(pod)
    code = int(ended["exitCode"]) if ended else None
    return JobStatus("ended", reason=told, node=_node_of_pod(pod), exit_code=code)


def _fate_of_pod(pod: Json) -> Fate:
    """Why a pod failed if not by itself."""
    state = pod.get("status", {})
    reason, said = str(state.get("reason") or ""), str(state.get("message") or "")
    if reason == "DeadlineExceeded":
        return "time"
    if reason == "OutOfmemory" or (_terminated_container(pod) or {}).get("reason") == "OOMKilled":
        return "memory"
    if reason == "Evicted":
        return "memory" if re.search(r"resource: memory", said) else "disk" if _DISK.search(said) else "node"
    if reason in ("Preempting", "Preempted"):
        return "preempted"
    disrupted = _true_conditions(pod).get("DisruptionTarget")
    if disrupted is not None:
        return "preempted" if str(disrupted.get("reason", "")).startswith("Preempt") else "node"
    return "node" if reason in _LOST_REASONS or reason.startswith("OutOf") else ""


def _unfinished_pod(pod: Json) -> KubeStatus:
    node, state = _node_of_pod(pod), pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):  # it ends soon, unless its node no longer answers
        return KubeStatus(JobStatus("running", node=node), waits="node")
    if state.get("phase") == "Failed":
        return KubeStatus(JobStatus("queued", reason="it is started again: its node was drained or lost"))
    scheduled: Json = next((row for row in state.get("conditions") or () if row["type"] == "PodScheduled"), {})
    if scheduled.get("status") == "False":
        return KubeStatus(JobStatus("queued", reason=_short(str(scheduled.get("message") or scheduled.get("reason")))))
    reason, said = _waiting_reason(pod)
    if reason in _NO_PULL:
        return KubeStatus(JobStatus("queued", reason=f"{reason}: {_short(said)}", hint=_PULL_HINT), waits="image")
    if hint := _NEVER_STARTS.get(reason):
        told = f"{reason}: {_short(said)}"
        return KubeStatus(JobStatus("ended", reason=told, node=node, fate="refused", hint=hint))
    if not node:
        return KubeStatus(JobStatus("queued", reason="a node is chosen"))
    return KubeStatus(JobStatus("running", node=node))


def _true_conditions(thing: Json) -> dict[str, Json]:
    rows = thing.get("status", {}).get("conditions") or ()
    return {row["type"]: row for row in rows if row.get("status") == "True"}


def _container_states(pod: Json) -> list[Json]:
    return [row.get("state") or {} for row in pod.get("status", {}).get("containerStatuses") or ()]


def _terminated_container(pod: Json) -> Json | None:
    return next((state["terminated"] for state in _container_states(pod) if state.get("terminated")), None)


def _waiting_reason(pod: Json) -> tuple[str, str]:
    waiting: Json = next((state["waiting"] for state in _container_states(pod) if state.get("waiting")), {})
    return str(waiting.get("reason") or ""), str(waiting.get("message") or "")


def _node_of_pod(pod: Json | None) -> str:
    return str((pod or {}).get("spec", {}).get("nodeName") or "")


def _short(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"
