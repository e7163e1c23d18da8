"""ENGINE=kubernetes without a cluster: manifests against Kubernetes' schemas, Jobs against a stand-in of its API."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantyard.batch import JobStatus
from quantyard.batch.errors import KubeRefused, QueueSilent
from quantyard.batch.kube_api import open_kube_api
from quantyard.batch.kube_check import NEEDED_RIGHTS, examine_kube_things, missing_kube_rights
from quantyard.batch.kube_job import KUEUE_LABEL, KubePlace, kube_job_name, kube_stage_job, kube_store_network
from quantyard.batch.kube_network import kube_network_policies
from quantyard.batch.kube_queue import KubeQueue
from quantyard.batch.kube_status import kube_job_status
from quantyard.cli.cluster_request import typed_cluster_request
from quantyard.cli.settings import SETTINGS
from quantyard.errors import BadRequest, EngineError
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import FileEntry
from quantyard.protocol.node_spec import NodeInput, NodeResources, NodeSpec
from quantyard.requests import ClusterRequest, KubeRequest
from tests.unit.kube_api_server import GIB, KubeServer, kube_server, valid

IMAGE = f"registry.lab:5000/quantyard-node@sha256:{'d' * 64}"
IN_BUCKET = KubePlace("s3://bucket/yard", {"AWS_ENDPOINT_URL": "https://minio.lab:9000"})
ON_CLAIM = KubePlace("/mnt/yard", {})
SETTINGS_OF_CLUSTER = {setting.name: setting.default for setting in SETTINGS if setting.group == "cluster"}
FULL = KubeRequest(
    namespace="lab", image=IMAGE, queue="gpus", nodes={"pool": "big"}, s3_secret="yard-s3", hf_secret="hub",
    pull_secret="registry", store_cidr="10.0.0.0/8", time_limit_s=7200.0, user=(1000, 1000),
)  # fmt: skip
PLAIN = KubeRequest(image=IMAGE, claim="yard/me", user=(1000, 1000))


def a_spec(**changes: object) -> NodeSpec:
    entry = FileEntry(path="model.gguf", size_bytes=5 * GIB, sha256="e" * 64)
    return NodeSpec(
        label="quantize Q4_K_M", stage="quantize", key="a" * 64, code="b" * 64, image="node+sha256:d", request={},
        time_limit_s=3600.0, resources=NodeResources(cpus=8, memory_bytes=4 * GIB, scratch_bytes=3 * GIB),
        inputs={"model": NodeInput(digest="f" * 64, files=(entry,))},
    ).model_copy(update=changes)


def a_job(kube: KubeRequest = FULL, place: KubePlace = IN_BUCKET, **changes: object) -> dict[str, Any]:
    return kube_stage_job(a_spec(**changes), "specs/x.json", kube, place, "host:1:2")


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    pod = job["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


# ---- manifests ---------------------------------------------------------------------------------------


@pytest.mark.commands
@pytest.mark.parametrize("kube", [FULL, PLAIN, KubeRequest(image=IMAGE)], ids=["full", "claim", "least"])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"network": True, "secrets": ("HF_TOKEN",)}, {"stage": "verify_foreign"},
        {"resources": NodeResources(cpus=2, gpus=2, exclusive=True)}, {"time_limit_s": 1.0, "inputs": {}},
    ],
)  # fmt: skip
def test_every_job_is_valid_for_kubernetes(kube: KubeRequest, changes: dict[str, object]) -> None:
    place = ON_CLAIM if kube.claim else IN_BUCKET
    job = kube_stage_job(a_spec(**changes), "specs/x.json", kube, place, "host:1:2", avoid={"n2", "n1"})
    assert valid(job) and len(job["metadata"]["name"]) <= 63


@pytest.mark.parametrize(("kube", "place"), [(FULL, IN_BUCKET), (PLAIN, ON_CLAIM), (FULL, KubePlace("s3://b", {}))])
def test_every_network_policy_is_valid_for_kubernetes(kube: KubeRequest, place: KubePlace) -> None:
    names = [valid(policy)["metadata"]["name"] for policy in kube_network_policies(kube, place)]
    assert names == ["quantyard-network-none", "quantyard-network-store", "quantyard-network-open"]


def test_a_pod_is_as_closed_as_our_containers() -> None:
    pod = pod_of(a_job())
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "privileged": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    own = pod["securityContext"]
    assert own["runAsNonRoot"] and own["runAsUser"] == 1000 and own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "fsGroup" in own and "fsGroup" not in pod_of(a_job(PLAIN, ON_CLAIM))["securityContext"]
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    assert container["image"] == IMAGE and pod["restartPolicy"] == "Never"


def test_kubernetes_starts_again_only_what_was_disrupted() -> None:
    spec = a_job()["spec"]
    first, second = spec["podFailurePolicy"]["rules"]
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert second["action"] == "FailJob" and second["onExitCodes"]["values"] == [2, 3, 70]
    assert second["onExitCodes"]["containerName"] == pod_of(a_job())["containers"][0]["name"]
    assert spec["backoffLimit"] == 0 and spec["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize(
    ("place", "kube", "network", "label"),
    [
        (IN_BUCKET, FULL, False, "store"), (ON_CLAIM, PLAIN, False, "none"), (IN_BUCKET, FULL, True, "open"),
        (ON_CLAIM, PLAIN, True, "open"),
    ],
)  # fmt: skip
def test_a_pod_has_the_network_that_its_stage_needs(
    place: KubePlace, kube: KubeRequest, network: bool, label: str
) -> None:
    job = a_job(kube, place, network=network)
    labels = job["spec"]["template"]["metadata"]["labels"]
    chosen = [
        policy for policy in kube_network_policies(kube, place)
        if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ]  # fmt: skip
    assert [policy["metadata"]["name"] for policy in chosen] == [f"quantyard-network-{label}"]
    assert kube_store_network(place, kube) in ("none", "store")
    if label == "none":
        assert set(chosen[0]["spec"]) == {"podSelector", "policyTypes"}, "nothing in, nothing out"
    if label == "store":
        assert chosen[0]["spec"]["egress"][1] == {
            "ports": [{"protocol": "TCP", "port": 9000}], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        }  # fmt: skip


def test_a_job_asks_for_what_its_stage_needs() -> None:
    needs = NodeResources(cpus=16, memory_bytes=7 * GIB, gpus=1, exclusive=True, scratch_bytes=3 * GIB)
    job = kube_stage_job(a_spec(resources=needs), "specs/x.json", FULL, IN_BUCKET, "me", avoid={"n1"})
    pod = pod_of(job)
    asked = pod["containers"][0]["resources"]
    assert asked["limits"] == asked["requests"] == {
        "cpu": "16", "memory": str(7 * GIB), "nvidia.com/gpu": "1", "ephemeral-storage": str((5 + 3 + 2) * GIB),
    }  # fmt: skip
    assert pod["nodeSelector"] == {"pool": "big"} and pod["activeDeadlineSeconds"] == 4200
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus" and job["spec"]["suspend"]
    [term] = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]
    assert "podAntiAffinity" in pod["affinity"], "what is timed has its node to itself"


def test_the_time_limit_of_the_settings_is_the_longest() -> None:
    assert pod_of(a_job(time_limit_s=1e6))["activeDeadlineSeconds"] == 7200
    assert pod_of(a_job(PLAIN, ON_CLAIM, time_limit_s=1e6))["activeDeadlineSeconds"] == 1_000_600


def test_secrets_are_files_of_those_that_need_them_and_never_variables() -> None:
    fetch, quantize = pod_of(a_job(network=True, secrets=("HF_TOKEN",))), pod_of(a_job())
    named = {volume["name"]: volume.get("secret") for volume in fetch["volumes"]}
    assert named["token"]["secretName"] == "hub" and named["token"]["defaultMode"] == 0o400
    assert named["s3"]["items"] == [{"key": "credentials", "path": "credentials", "mode": 0o400}]
    assert "token" not in {volume["name"] for volume in quantize["volumes"]}, "only downloads have the token"
    for pod in (fetch, quantize):
        names = {row["name"] for row in pod["containers"][0]["env"]}
        assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"} & names
        assert not [row for row in pod["containers"][0]["env"] if "secretKeyRef" in row.get("valueFrom", {})]
        mounts = pod["containers"][0]["volumeMounts"]
        assert all(mount["readOnly"] for mount in mounts if "secrets" in mount["mountPath"])


def test_a_claim_is_mounted_where_the_node_command_looks() -> None:
    pod = pod_of(a_job(PLAIN, ON_CLAIM))
    [container] = pod["containers"]
    assert {"name": "store", "mountPath": "/store", "subPath": "me"} in container["volumeMounts"]
    assert container["args"][:2] == ["--store", "/store"]
    assert container["command"] == ["python", "-m", "quantyard", "node", "run", "specs/x.json"]


def test_no_secret_of_this_machine_is_in_a_manifest() -> None:
    environment = {
        "HF_TOKEN": "hf_abc", "HTTPS_PROXY": "http://me:secret@proxy:3128", "NO_PROXY": "localhost", "PATH": "/mine",
        "AWS_SECRET_ACCESS_KEY": "s3cret", "HF_HOME": "/home/me",
    }  # fmt: skip
    values = SETTINGS_OF_CLUSTER | {"HF_TOKEN": "hf_abc", "KUBE_IMAGE": IMAGE, "STORE": "s3://bucket/yard"}
    cluster = typed_cluster_request(values, environment, None, "kubernetes")
    assert cluster.nodes_lack_token and cluster.variables == {"NO_PROXY": "localhost"}
    place = KubePlace(cluster.store, cluster.variables)
    text = json.dumps(kube_stage_job(a_spec(secrets=("HF_TOKEN",)), "specs/x.json", cluster.kube, place, "me"))
    assert not any(word in text for word in ("hf_abc", "secret@", "s3cret", "/home/me"))


# ---- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KUBE_IMAGE", "registry/node:latest"), ("KUBE_IMAGE", ""), ("KUBE_NAMESPACE", "Lab"),
        ("KUBE_NAMESPACE", "a/b"), ("KUBE_QUEUE", "my queue"), ("KUBE_HF_SECRET", "-x"), ("KUBE_NODES", "pool"),
        ("KUBE_NODES", "a b=c"), ("KUBE_CLAIM", "yard/../x"), ("KUBE_CLAIM", "Yard"), ("KUBE_STORE_CIDR", "lab"),
        ("KUBE_TIME", "soon"), ("KUBE_CPUS_PER_STAGE", "-1"), ("KUBE_MEMORY_PER_STAGE", "much"),
        ("NODE_ENGINE", "docker"), ("KUBE_CONTEXT", "a\nb"), ("STORE", "/mine"), ("STORE", ""),
    ],
)  # fmt: skip
def test_a_setting_that_kubernetes_cannot_take_is_refused(name: str, text: str) -> None:
    values = SETTINGS_OF_CLUSTER | {"HF_TOKEN": "", "KUBE_IMAGE": IMAGE, "STORE": "s3://bucket/yard", name: text}
    with pytest.raises(BadRequest, match=name):
        typed_cluster_request(values, {}, None, "kubernetes")


def test_the_settings_of_kubernetes_are_not_asked_for_by_other_engines() -> None:
    cluster = typed_cluster_request(SETTINGS_OF_CLUSTER | {"HF_TOKEN": ""}, {}, None, "slurm")
    assert cluster.kube == ClusterRequest().kube


def test_a_claim_or_a_bucket_and_labels_of_nodes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1000)
    values = SETTINGS_OF_CLUSTER | {
        "HF_TOKEN": "", "KUBE_IMAGE": IMAGE, "STORE": "/mnt/yard", "KUBE_CLAIM": "yard/me", "KUBE_TIME": "2h",
        "KUBE_NODES": "pool=big, example.com/disk=fast", "KUBE_MEMORY_PER_STAGE": "32GiB",
    }  # fmt: skip
    kube = typed_cluster_request(values, {}, None, "kubernetes").kube
    assert kube.nodes == {"pool": "big", "example.com/disk": "fast"} and kube.time_limit_s == 7200.0
    assert kube.claim == "yard/me" and kube.memory_bytes == 32 * GIB and kube.user[0] == 1000
    monkeypatch.setattr("os.getuid", lambda: 0)
    with pytest.raises(BadRequest, match="root"):
        typed_cluster_request(values, {}, None, "kubernetes")


# ---- states ------------------------------------------------------------------------------------------

JOB: dict[str, Any] = {"metadata": {"name": "j", "uid": "u", "labels": {}}, "spec": {}, "status": {}}
FAILED = JOB | {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}}
DONE = JOB | {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}


def a_pod(node: str = "n1", created: str = "1", deleted: bool = False, **status: Any) -> dict[str, Any]:
    gone = {"deletionTimestamp": "2026-12-01T00:00:00Z"} if deleted else {}
    about = {"name": "p", "creationTimestamp": created} | gone
    return {"metadata": about, "spec": {"nodeName": node}, "status": status}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"terminated": {"exitCode": code, "reason": reason}}}]}


def waiting(reason: str, message: str = "so it is") -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


UNSCHEDULABLE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient memory.",
}  # fmt: skip
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}


@pytest.mark.parametrize(
    ("pod", "fate", "code"),
    [
        (ended(137, "OOMKilled"), "memory", None), (ended(2), "", 2), (ended(5), "", 5), (ended(137), "", 137),
        ({"reason": "DeadlineExceeded"} | ended(143), "time", None),
        ({"reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds the limit'}, "disk", None),
        ({"reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds the total limit"}, "disk", None),
        ({"reason": "Evicted", "message": "The node was low on resource: memory."}, "memory", None),
        ({"reason": "Evicted", "message": "The node had condition: [PIDPressure]"}, "node", None),
        ({"reason": "OutOfmemory", "message": "Node didn't have enough resource"}, "memory", None),
        ({"reason": "OutOfcpu"}, "node", None), ({"reason": "NodeLost"}, "node", None),
        ({"reason": "Preempting"}, "preempted", None), ({"conditions": [DISRUPTED]} | ended(143), "node", None),
        ({"conditions": [DISRUPTED | {"reason": "PreemptionByScheduler"}]}, "preempted", None),
    ],
)  # fmt: skip
def test_a_failed_job_says_why(pod: dict[str, Any], fate: str, code: int | None) -> None:
    status = kube_job_status(FAILED, [a_pod(phase="Failed", **pod)]).job
    assert (status.state, status.fate, status.node) == ("ended", fate, "n1")
    assert code is None or status.exit_code == code


def test_a_job_whose_pod_went_with_its_node_is_tried_again() -> None:
    assert kube_job_status(FAILED, []).job.fate == "node"


@pytest.mark.parametrize(
    ("job", "pods", "state", "said"),
    [
        (DONE, [a_pod(phase="Succeeded")], "ended", ""), (JOB, [], "queued", "no pod yet"),
        (JOB | {"spec": {"suspend": True}}, [], "queued", "suspended"),
        (
            JOB | {"spec": {"suspend": True}, "metadata": JOB["metadata"] | {"labels": {KUEUE_LABEL: "q"}}},
            [], "queued", "Kueue's queue q",
        ),
        (JOB, [a_pod("", phase="Pending", conditions=[UNSCHEDULABLE])], "queued", "3 Insufficient memory"),
        (JOB, [a_pod("", phase="Pending")], "queued", "a node is chosen"),
        (JOB, [a_pod(**waiting("ContainerCreating"))], "running", ""), (JOB, [a_pod(phase="Running")], "running", ""),
        (JOB, [a_pod(**waiting("ErrImagePull", "not found"))], "queued", "ErrImagePull: not found"),
        (JOB, [a_pod(**waiting("ImagePullBackOff", "back-off"))], "queued", "ImagePullBackOff"),
        (JOB, [a_pod(**waiting("InvalidImageName"))], "ended", "InvalidImageName"),
        (JOB, [a_pod(**waiting("CreateContainerConfigError", 'secret "hub" not found'))], "ended", "hub"),
        (JOB, [a_pod(phase="Failed", conditions=[DISRUPTED])], "queued", "started again"),
        (JOB, [a_pod(phase="Failed", created="1"), a_pod(phase="Running", created="2")], "running", ""),
        (JOB | {"metadata": JOB["metadata"] | {"deletionTimestamp": "now"}}, [], "ended", ""),
    ],
)  # fmt: skip
def test_a_job_that_goes_on_says_what_it_waits_for(job: Any, pods: Any, state: str, said: str) -> None:
    status = kube_job_status(job, pods).job
    assert status.state == state and said in status.reason


def test_what_can_never_start_says_what_to_do() -> None:
    for reason in ("InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"):
        status = kube_job_status(JOB, [a_pod(**waiting(reason))]).job
        assert status.fate == "refused" and status.hint


# ---- the queue ---------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[KubeServer]:
    with kube_server() as state:
        yield state


@pytest.fixture
def queue(server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubeQueue:
    return a_queue(server, tmp_path, monkeypatch)


def a_queue(server: KubeServer, folder: Path, monkeypatch: pytest.MonkeyPatch, kube: KubeRequest = PLAIN) -> KubeQueue:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(server.kubeconfig(folder)))
    return KubeQueue(kube, ON_CLAIM if kube.claim else IN_BUCKET)


@pytest.mark.commands
def test_a_stage_is_submitted_once_and_a_second_run_attaches(
    server: KubeServer, queue: KubeQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = queue.submit(a_spec(), "specs/x.json")
    assert first.ours and first.id == f"{kube_job_name(a_spec())}/{server.job()['metadata']['uid']}"
    assert queue.submit(a_spec(), "specs/x.json") == first
    other = a_queue(server, tmp_path, monkeypatch)
    other._submitter = "another-host:1:2"
    assert other.submit(a_spec(), "specs/x.json").id == first.id
    assert not other.submit(a_spec(), "specs/x.json").ours, "its submitter is alive, so it is not ours to cancel"


def test_an_ended_job_of_the_same_stage_makes_room_for_the_next_try(server: KubeServer, queue: KubeQueue) -> None:
    first = queue.submit(a_spec(), "specs/x.json")
    server.job()["status"] = FAILED["status"]
    again = queue.submit(a_spec(resources=NodeResources(memory_bytes=8 * GIB)), "specs/y.json")
    assert again.id != first.id and again.ours
    assert pod_of(server.job())["containers"][0]["command"][-1] == "specs/y.json"


def test_a_job_of_that_name_which_is_of_another_stage_is_left_alone(server: KubeServer, queue: KubeQueue) -> None:
    queue.submit(a_spec(), "specs/x.json")
    server.job()["metadata"]["annotations"]["quantyard/key"] = "c" * 64
    with pytest.raises(EngineError, match="not of this stage"):
        queue.submit(a_spec(), "specs/x.json")


def test_poll_follows_a_job_from_the_queue_to_its_end(server: KubeServer, queue: KubeQueue) -> None:
    job = queue.submit(a_spec(), "specs/x.json").id
    assert queue.poll([job])[job].state == "queued"
    pod = server.add_pod(server.job(), {"phase": "Pending", "conditions": [UNSCHEDULABLE]})
    assert "Insufficient memory" in queue.poll([job])[job].reason
    pod["spec"]["nodeName"], pod["status"] = "n7", {"phase": "Running"}
    assert queue.poll([job])[job] == JobStatus("running", node="n7")
    pod["status"], server.job()["status"] = {"phase": "Succeeded"}, DONE["status"]
    assert queue.poll([job])[job] == JobStatus("ended", node="n7", exit_code=0)


def test_a_pod_that_is_killed_for_memory_is_told_from_other_ends(server: KubeServer, queue: KubeQueue) -> None:
    job = queue.submit(a_spec(), "specs/x.json").id
    server.add_pod(server.job(), {"phase": "Failed"} | ended(137, "OOMKilled"), "n1")
    server.job()["status"] = FAILED["status"]
    assert queue.poll([job])[job].fate == "memory"


def test_an_image_that_cannot_be_pulled_ends_the_wait_after_minutes(
    server: KubeServer, queue: KubeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = queue.submit(a_spec(), "specs/x.json").id
    server.add_pod(server.job(), waiting("ImagePullBackOff", "manifest unknown"), "n1")
    assert queue.poll([job])[job].state == "queued"
    queue._waits_since = {key: since - 301.0 for key, since in queue._waits_since.items()}
    status = queue.poll([job])[job]
    assert status.fate == "refused" and "manifest unknown" in status.reason and "KUBE_PULL_SECRET" in status.hint


def test_a_pod_on_a_node_that_no_longer_answers_is_lost_and_its_job_replaced(
    server: KubeServer, queue: KubeQueue
) -> None:
    first = queue.submit(a_spec(), "specs/x.json").id
    server.add_pod(server.job(), {"phase": "Running"}, "n1", deletionTimestamp="2026-12-01T00:00:00Z")
    assert queue.poll([first])[first].state == "running"
    queue._waits_since = {key: since - 1000.0 for key, since in queue._waits_since.items()}
    assert queue.poll([first])[first] == JobStatus("lost", node="n1")
    assert queue.submit(a_spec(), "specs/x.json").id != first


def test_a_job_that_somebody_deleted_is_not_submitted_again(server: KubeServer, queue: KubeQueue) -> None:
    job = queue.submit(a_spec(), "specs/x.json").id
    assert queue.poll([job])[job].state == "queued"
    server.bury(server.job()["metadata"]["name"])
    assert queue.poll([job])[job].fate == "cancelled"
    assert queue.poll(["other/uid"])["other/uid"].state == "lost", "one that was never seen may have ended long ago"


def test_cancel_ends_this_job_and_no_other_of_its_name(server: KubeServer, queue: KubeQueue) -> None:
    job = queue.submit(a_spec(), "specs/x.json").id
    queue.cancel([job.replace("uid-", "old-uid-")])
    assert server.of("jobs")
    queue.cancel([job, "gone/uid"])
    assert not server.of("jobs")


def test_the_last_lines_of_a_pod_are_in_the_error(server: KubeServer, queue: KubeQueue) -> None:
    job = queue.submit(a_spec(), "specs/x.json").id
    assert not queue.log_tail(job, a_spec())
    server.logs = "the last line\n"
    server.add_pod(server.job(), {"phase": "Failed"}, "n1")
    assert queue.log_tail(job, a_spec()) == "the last line"


def test_the_network_is_closed_before_the_first_job_and_once(server: KubeServer, queue: KubeQueue) -> None:
    queue.submit(a_spec(), "specs/x.json")
    queue.submit(a_spec(key="c" * 64), "specs/y.json")
    made = [request for request in server.requests if request.startswith("POST")]
    assert made == ["POST networkpolicies"] * 3 + ["POST jobs"] * 2


def test_a_policy_that_somebody_opened_is_closed_again(server: KubeServer, queue: KubeQueue) -> None:
    queue.close_network()
    server.of("networkpolicies")["quantyard-network-none"]["spec"]["egress"] = [{}]
    queue._closed = False
    queue.close_network()
    assert "egress" not in server.of("networkpolicies")["quantyard-network-none"]["spec"]
    assert server.requests.count("PUT networkpolicies") == 1


def test_without_the_right_to_make_policies_no_job_is_submitted(server: KubeServer, queue: KubeQueue) -> None:
    server.refused["POST networkpolicies"] = 403
    with pytest.raises(KubeRefused, match="403"):
        queue.submit(a_spec(), "specs/x.json")
    assert not server.of("jobs")


@pytest.mark.commands
@pytest.mark.parametrize(
    ("code", "kind"), [(403, KubeRefused), (422, KubeRefused), (503, QueueSilent), (429, QueueSilent)]
)
def test_what_the_api_refuses_is_told_from_its_silence(
    server: KubeServer, queue: KubeQueue, code: int, kind: type[EngineError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantyard.batch.kube_queue._SUBMIT_S", 0.0)
    server.refused["POST jobs"] = code
    with pytest.raises(kind) as caught:
        queue.submit(a_spec(), "specs/x.json")
    assert caught.value.hint


def test_an_api_that_has_too_much_to_do_is_asked_again(server: KubeServer, queue: KubeQueue) -> None:
    server.refused["POST jobs"] = 429
    threading.Timer(0.3, server.refused.clear).start()
    assert queue.submit(a_spec(), "specs/x.json").ours and len(server.of("jobs")) == 1


def test_an_api_that_is_gone_leaves_jobs_running(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.url = "http://127.0.0.1:1"
    with pytest.raises(QueueSilent, match="does not answer"):
        a_queue(server, tmp_path, monkeypatch).poll(["a/b"])


# ---- nodes, contexts, doctor -------------------------------------------------------------------------


def a_node(name: str, cpu: str, memory: str, ready: bool = True, taints: Any = (), **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels}, "spec": {"taints": list(taints)},
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory}, "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }  # fmt: skip


def test_a_stage_has_most_of_the_smallest_node_that_takes_jobs(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = [{"key": "control-plane", "effect": "NoSchedule"}]
    for node in (
        a_node("a", "15900m", "64Gi", pool="big"), a_node("b", "32", "128Gi", pool="big"), a_node("c", "2", "4Gi"),
        a_node("d", "1", "1Gi", ready=False, pool="big"), a_node("e", "1", "1Gi", taints=closed, pool="big"),
    ):  # fmt: skip
        server.add("nodes", node)
    capacity = a_queue(server, tmp_path, monkeypatch, FULL).capacity()
    assert (capacity.cpus, capacity.nodes, capacity.cpu) == (14, 2, "kubernetes pool=big")
    assert capacity.memory_bytes == int(64 * GIB * 0.9)


def test_without_the_right_to_list_nodes_the_settings_say_what_a_stage_has(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refused["GET nodes"] = 403
    with pytest.raises(EngineError, match="list nodes") as caught:
        a_queue(server, tmp_path, monkeypatch).capacity()
    assert "KUBE_CPUS_PER_STAGE" in caught.value.hint
    told = KubeRequest(image=IMAGE, cpus=8, memory_bytes=32 * GIB)
    assert a_queue(server, tmp_path, monkeypatch, told).capacity().cpus == 8


def test_no_node_that_takes_jobs_is_said(server: KubeServer, queue: KubeQueue) -> None:
    server.add("nodes", a_node("d", "1", "1Gi", ready=False))
    with pytest.raises(EngineError, match="None of 1 nodes"):
        queue.capacity()


def test_context_and_namespace_are_those_of_the_kubeconfig_unless_named(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_queue(server, tmp_path, monkeypatch)
    assert open_kube_api(KubeRequest()).namespace == "lab"
    assert open_kube_api(KubeRequest(context="other")).namespace == "elsewhere"
    assert open_kube_api(KubeRequest(context="other", namespace="mine")).namespace == "mine"
    with pytest.raises(BadRequest, match="nowhere"):
        open_kube_api(KubeRequest(context="nowhere"))


def test_a_context_is_used_where_the_kubeconfig_has_no_current_one(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_queue(server, tmp_path, monkeypatch)
    written = json.loads((tmp_path / "kubeconfig").read_text())
    del written["current-context"]
    (tmp_path / "kubeconfig").write_text(json.dumps(written))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert open_kube_api(KubeRequest(context="other")).namespace == "elsewhere"
    with pytest.raises(BadRequest) as caught:
        open_kube_api(KubeRequest())
    assert "current-context" in caught.value.message and "KUBE_CONTEXT" in caught.value.hint


@pytest.mark.parametrize(
    ("queue", "there", "note"), [
        ({}, True, ""), ({"status": {"conditions": [{"type": "Active", "status": "True"}]}}, True, ""),
        (
            {"status": {"conditions": [{"type": "Active", "status": "False", "message": "no ClusterQueue"}]}}, True,
            "it takes no Jobs now: no ClusterQueue",
        ),
        (None, False, ""), (403, None, ""),
    ],
)  # fmt: skip
def test_the_queue_of_kueue_is_looked_for_and_asked_whether_it_takes_jobs(
    queue: dict[str, Any] | int | None, there: bool | None, note: str, server: KubeServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    a_queue(server, tmp_path, monkeypatch)
    if isinstance(queue, int):
        server.refused["GET localqueues"] = queue
    elif queue is not None:
        server.add("localqueues", {"metadata": {"name": "gpus"}} | queue)
    kube = KubeRequest(queue="gpus")
    [found] = examine_kube_things(open_kube_api(kube), kube)
    assert (found.setting, found.there, found.note) == ("KUBE_QUEUE", there, note)


def test_without_a_kubeconfig_the_hint_says_how_to_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(BadRequest) as caught:
        open_kube_api(KubeRequest())
    assert "KUBECONFIG" in caught.value.hint


@pytest.mark.commands
def test_the_rights_that_are_missing_are_named(server: KubeServer, queue: KubeQueue) -> None:
    assert not missing_kube_rights(queue.api)
    server.denied = {("create", "jobs"), ("update", "networkpolicies"), ("get", "pods")}
    assert missing_kube_rights(queue.api) == [
        "create jobs.batch", "get pods/log", "update networkpolicies.networking.k8s.io",
    ]  # fmt: skip


def test_secrets_are_looked_for_without_reading_them(
    server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = a_queue(server, tmp_path, monkeypatch, FULL)
    server.add("secrets", {"metadata": {"name": "hub"}, "data": {"HF_TOKEN": "aGZfYWJj"}})
    named = replace(FULL, queue="")
    found = {thing.setting: thing.there for thing in examine_kube_things(queue.api, named)}
    assert found == {"KUBE_HF_SECRET": True, "KUBE_S3_SECRET": False, "KUBE_PULL_SECRET": False}
    assert all("PartialObjectMetadata" in headers["accept"] for headers in server.headers)
    assert all(headers["authorization"] == "Bearer a-token" for headers in server.headers)
    server.refused["GET secrets"] = 403
    assert {thing.there for thing in examine_kube_things(queue.api, named)} == {None}


@pytest.mark.parametrize(("modes", "note"), [(["ReadWriteMany"], ""), (["ReadWriteOnce"], "only ReadWriteOnce")])
def test_a_claim_that_not_all_nodes_can_mount_is_noted(
    server: KubeServer, queue: KubeQueue, modes: list[str], note: str
) -> None:
    assert [thing.there for thing in examine_kube_things(queue.api, PLAIN)] == [False]
    server.add("persistentvolumeclaims", {"metadata": {"name": "yard"}, "spec": {"accessModes": modes}})
    [thing] = examine_kube_things(queue.api, PLAIN)
    assert thing.there and thing.note.startswith(note)


def test_the_page_lists_every_right_that_a_run_needs() -> None:
    page = (REPO_DIR / "docs" / "how-to" / "kubernetes.md").read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        valid(yaml.safe_load(block))
    for verb, group, resource in NEEDED_RIGHTS:
        rows = [line for line in page.splitlines() if f"resources: [{resource}]" in line]
        assert any(verb in row and (group or '""') in row for row in rows), f"{verb} {resource}"
