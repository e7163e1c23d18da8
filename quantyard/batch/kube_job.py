"""A stage as a Job of Kubernetes: its manifest, hardened like our containers. It holds no secret, only names of them.

One pod at a time runs `quantyard node`. Kubernetes itself starts it again after a disruption (a drained or lost node, a
preemption); every other failure ends the Job, and our own rules decide what is tried again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from quantyard.protocol.base import ExitCode
from quantyard.protocol.node_spec import NodeResources, NodeSpec
from quantyard.requests import KubeRequest

Manifest = dict[str, Any]

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OURS: Final = {MANAGED_BY: "quantyard"}
KEY: Final = "quantyard/key"
SUBMITTER: Final = "quantyard/submitter"
NETWORK: Final = "quantyard/network"
KUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
CONTAINER: Final = "stage"
KEEP_S: Final = 3600  # an ended Job, for its log
GRACE_S: Final = 30
_STORE: Final = "/store"
_SCRATCH: Final = "/scratch"
_TOKEN_FOLDER: Final = "/run/secrets/quantyard"  # noqa: S105  (a folder)
_S3_FOLDER: Final = "/run/secrets/s3"
_COPYING_S: Final = 600.0  # a stage's own limit comes first; copying its files is outside of it
_SPARE_BYTES: Final = 2 * 2**30  # of the node's disk, beside inputs and outputs: logs, temporary files
_NEVER_AGAIN: Final = (ExitCode.BAD_REQUEST, ExitCode.UNSUPPORTED_MODEL, ExitCode.BUG)


@dataclass(frozen=True)
class KubePlace:
    """Where pods find the shared store, and what is set for them: nothing of it is a secret.

    Args:
        store_url: as this machine names it; pods see a volume claim elsewhere.
        variables: addresses of proxies, endpoints.
    """

    store_url: str
    variables: Mapping[str, str]

    def pod_store(self, kube: KubeRequest) -> str:
        """The store's name in a pod."""
        return _STORE if kube.claim else self.store_url


def kube_job_name(spec: NodeSpec) -> str:
    """The name of a stage's Job: of the same key, the same. At most 63 characters, since pods carry it as a label."""
    return f"quantyard-{spec.stage.replace('_', '-')[:30]}-{spec.key[:16]}"


def kube_stage_job(
    spec: NodeSpec, spec_name: str, kube: KubeRequest, place: KubePlace, submitter: str, avoid: Collection[str] = ()
) -> Manifest:
    """The Job of a stage.

    Args:
        spec_name: of the spec in the store.
        submitter: the process that submits it.
        avoid: nodes that it must not run on.
    """
    limit_s = spec.time_limit_s + _COPYING_S
    return kube_node_job(
        kube_job_name(spec), ["run", spec_name], kube, place, spec.resources,
        labels={"quantyard/stage": spec.stage, KEY: spec.key[:32], NETWORK: _network_of_spec(spec, place, kube)},
        annotations={KEY: spec.key, SUBMITTER: submitter, "quantyard/label": spec.label},
        limit_s=min(limit_s, kube.time_limit_s or limit_s), with_token="HF_TOKEN" in spec.secrets, avoid=avoid,
        input_bytes=sum(entry.size_bytes for given in spec.inputs.values() for entry in given.files),
    )  # fmt: skip


def kube_node_job(
    name: str, words: Sequence[str], kube: KubeRequest, place: KubePlace, needs: NodeResources, *,
    labels: Mapping[str, str], annotations: Mapping[str, str], limit_s: float, with_token: bool = False,
    avoid: Collection[str] = (), input_bytes: int = 0,
) -> Manifest:
    """A Job that runs `quantyard node` with these words."""
    queue = {KUEUE_LABEL: kube.queue} if kube.queue else {}
    own = {**OURS, "app.kubernetes.io/name": "quantyard", **labels}
    pod = _hardened_pod(kube, place, words, needs, with_token=with_token, disk_bytes=input_bytes + needs.scratch_bytes)
    pod |= {"activeDeadlineSeconds": max(60, int(limit_s))}  # of the pod: waiting for a node is not counted
    if affinity := _pod_affinity(needs, avoid):
        pod["affinity"] = affinity
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "labels": {**own, **queue}, "annotations": dict(annotations)},
        "spec": {
            "parallelism": 1, "completions": 1, "backoffLimit": 0, "ttlSecondsAfterFinished": KEEP_S,
            "podReplacementPolicy": "Failed", "suspend": bool(kube.queue),  # Kueue resumes it
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": CONTAINER, "operator": "In", "values": sorted(map(int, _NEVER_AGAIN)),
                        },
                    },
                ]
            },
            "template": {"metadata": {"labels": own}, "spec": pod},
        },
    }  # fmt: skip


def _network_of_spec(spec: NodeSpec, place: KubePlace, kube: KubeRequest) -> str:
    """The policy that its pod falls under: `open`, `store` or `none`."""
    return "open" if spec.network else kube_store_network(place, kube)


def kube_store_network(place: KubePlace, kube: KubeRequest) -> str:
    """What a pod needs of the network for the store alone: nothing for a volume, which its node mounts."""
    return "none" if kube.claim or "://" not in place.store_url else "store"


def _hardened_pod(
    kube: KubeRequest, place: KubePlace, words: Sequence[str], needs: NodeResources, *, with_token: bool,
    disk_bytes: int,
) -> Manifest:
    uid, gid = kube.user
    volumes, mounts = _pod_volumes(kube, with_token=with_token)
    pod: Manifest = {
        "restartPolicy": "Never", "automountServiceAccountToken": False, "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": uid, "runAsGroup": gid, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER, "image": kube.image, "imagePullPolicy": "IfNotPresent",
                "command": ["python", "-m", "quantyard", "node", *words],
                "args": [
                    "--store", place.pod_store(kube), "--engine", "local", "--scratch", _SCRATCH,
                    "--artifacts", _SCRATCH,
                ],
                "env": _pod_variables(kube, place, with_token=with_token),
                "resources": _pod_resources(needs, disk_bytes),
                "securityContext": {
                    "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }  # fmt: skip
    if any("secret" in volume for volume in volumes):  # else their files are root's alone; a claim may change its group
        pod["securityContext"] |= {"fsGroup": gid, "fsGroupChangePolicy": "OnRootMismatch"}
    if kube.nodes:
        pod["nodeSelector"] = dict(kube.nodes)
    if kube.pull_secret:
        pod["imagePullSecrets"] = [{"name": kube.pull_secret}]
    return pod


def _pod_volumes(kube: KubeRequest, *, with_token: bool) -> tuple[list[Manifest], list[Manifest]]:
    volumes: list[Manifest] = [{"name": "scratch", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    mounts: list[Manifest] = [{"name": "scratch", "mountPath": _SCRATCH}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if kube.claim:
        claim, _, folder = kube.claim.partition("/")
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "store", "mountPath": _STORE} | ({"subPath": folder} if folder else {}))
    files = [("token", kube.hf_secret, "HF_TOKEN", _TOKEN_FOLDER)] * (with_token and bool(kube.hf_secret))
    files += [("s3", kube.s3_secret, "credentials", _S3_FOLDER)] * bool(kube.s3_secret)
    for name, secret, file, folder in files:
        items = [{"key": file, "path": file, "mode": 0o400}]
        volumes.append({"name": name, "secret": {"secretName": secret, "items": items, "defaultMode": 0o400}})
        mounts.append({"name": name, "mountPath": folder, "readOnly": True})
    return volumes, mounts


def _pod_variables(kube: KubeRequest, place: KubePlace, *, with_token: bool) -> list[Manifest]:
    """The environment of a pod. The node's command learns from it where it runs, and as what."""
    own = {"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "QUANTYARD_NODE_IMAGE": kube.image}  # noqa: S108
    if with_token and kube.hf_secret:
        own["HF_TOKEN_PATH"] = f"{_TOKEN_FOLDER}/HF_TOKEN"
    if kube.s3_secret:
        own["AWS_SHARED_CREDENTIALS_FILE"] = f"{_S3_FOLDER}/credentials"
    fields = {
        "QUANTYARD_NODE_NAME": "spec.nodeName",
        "JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
        "JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
    }
    return [
        *({"name": name, "value": value} for name, value in sorted({**place.variables, **own}.items())),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        {"name": "QUANTYARD_NODE_JOB", "value": "kubernetes $(JOB_NAME)/$(JOB_UID)"},  # after those that it names
    ]


def _pod_resources(needs: NodeResources, disk_bytes: int) -> Manifest:
    """Limits equal to requests: a pod that takes no more than it asked for is evicted last."""
    asked: dict[str, str] = {"cpu": str(needs.cpus), "ephemeral-storage": str(disk_bytes + _SPARE_BYTES)}
    if needs.memory_bytes:
        asked["memory"] = str(needs.memory_bytes)
    if needs.gpus:
        asked["nvidia.com/gpu"] = str(needs.gpus)
    return {"requests": asked, "limits": dict(asked)}


def _pod_affinity(needs: NodeResources, avoid: Collection[str]) -> Manifest:
    """Not on nodes to avoid; a stage whose times count is on a node without another pod of ours."""
    affinity: Manifest = {}
    if avoid:
        others = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in sorted(avoid)]
        terms = {"nodeSelectorTerms": [{"matchFields": others}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    if needs.exclusive:
        alone = {"labelSelector": {"matchLabels": OURS}, "topologyKey": "kubernetes.io/hostname"}
        affinity["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [alone]}
    return affinity
