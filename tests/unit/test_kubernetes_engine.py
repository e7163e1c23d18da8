"""ENGINE=kubernetes as a whole: a stage becomes a Job of a stand-in of the API, and its pod is the node's command here.
The pod takes everything that it knows from the manifest. Also what `doctor` says of such a cluster.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from quantyard.batch.batch_engine import BatchEngine
from quantyard.batch.kube_job import KubePlace
from quantyard.batch.kube_queue import KubeQueue
from quantyard.batch.kube_tools import KubeTools
from quantyard.cli.parser import add_command_options
from quantyard.cli.request import read_command_request
from quantyard.engines.images import engine_code_version
from quantyard.errors import BadRequest, EngineError, QuantyardError
from quantyard.node.check import CHECKED_IMAGES, examine_node
from quantyard.node.run import NodePlace, read_node_spec, run_node_spec
from quantyard.paths import REPO_DIR
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, Progress, StageResult
from quantyard.requests import BuildRequest, ClusterRequest, KubeRequest, RunEnvironment
from quantyard.shared_store.posix_objects import PosixObjects
from quantyard.store.artifact import ModelId
from quantyard.store.stages import ModelStore
from quantyard.workflows.kube_cluster import examine_kube_cluster
from tests.unit.fake_engine import FakeEngine, fails
from tests.unit.kube_api_server import KubeServer, kube_server
from tests.unit.test_batch_engine import a_spec
from tests.unit.test_kubernetes import DISRUPTED, DONE, FAILED, IMAGE, a_node, ended, waiting

pytestmark = pytest.mark.commands
OTHER_IMAGE = IMAGE.replace("d" * 64, "e" * 64)


class Pods:
    """Runs the pod of each Job in a thread of this process: a machine of its own, with the node's command. `before` are
    the states of the first pods, which are not run.
    """

    def __init__(self, server: KubeServer, store: PosixObjects, folder: Path) -> None:
        self.server, self.store, self.folder = server, store, folder
        self.engine = FakeEngine()
        self.image = ""  # another than the manifest's
        self.before: list[dict[str, Any]] = []
        server.on_job = self.start

    def start(self, job: dict[str, Any]) -> None:
        if self.before:
            self.server.add_pod(job, {"phase": "Failed"} | self.before.pop(0), "n1")
            job["status"] = FAILED["status"]
            return
        pod = self.server.add_pod(job, {"phase": "Running"}, "n2")
        threading.Thread(target=self.run, args=(job, pod), daemon=True).start()

    def run(self, job: dict[str, Any], pod: dict[str, Any]) -> None:
        code = self.command(self.variables(job, pod), pod["spec"]["containers"][0])
        pod["status"] = {"phase": "Failed" if code else "Succeeded"} | ended(code)
        job["status"] = FAILED["status"] if code else DONE["status"]

    def variables(self, job: dict[str, Any], pod: dict[str, Any]) -> dict[str, str]:
        """The environment, as the kubelet makes it."""
        fields = {
            "spec.nodeName": pod["spec"]["nodeName"],
            "metadata.labels['batch.kubernetes.io/job-name']": job["metadata"]["name"],
            "metadata.labels['batch.kubernetes.io/controller-uid']": job["metadata"]["uid"],
        }
        made: dict[str, str] = {}
        for row in pod["spec"]["containers"][0]["env"]:
            text = row["value"] if "value" in row else fields[row["valueFrom"]["fieldRef"]["fieldPath"]]
            for name, value in made.items():
                text = text.replace(f"$({name})", value)
            made[row["name"]] = text
        return made

    def command(self, variables: Mapping[str, str], container: dict[str, Any]) -> int:
        action, name = container["command"][-2:]
        image = self.image or variables["QUANTYARD_NODE_IMAGE"]
        host, job = variables["QUANTYARD_NODE_NAME"], variables["QUANTYARD_NODE_JOB"]
        place = NodePlace(self.store, self.folder / "scratch", REPO_DIR, host, job, image)
        try:
            if action == "check":
                found = examine_node(place, self.engine, CHECKED_IMAGES)
                self.store.put(name, found.model_dump_json().encode())
            else:
                run_node_spec(read_node_spec(self.store, name), place, self.engine, lambda _text: None)
        except QuantyardError as error:
            return error.code
        return 0


class Cluster:
    """A batch engine over the stand-in, and a model's store of the machine that plans."""

    def __init__(self, server: KubeServer, folder: Path, **settings: object) -> None:
        self.store = PosixObjects(folder / "store")
        self.pods = Pods(server, self.store, folder)
        server.add("nodes", a_node("n1", "8", "32Gi"))
        server.add("nodes", a_node("n2", "8", "32Gi"))
        kube = KubeRequest(image=IMAGE, claim="yard", user=(1000, 1000))
        request = ClusterRequest(kube=kube, store=self.store.url, **settings)  # type: ignore[arg-type]
        queue = KubeQueue(kube, KubePlace(self.store.url, {}))
        self.here = FakeEngine()
        tools = KubeTools(request, lambda: self.here)
        self.engine = BatchEngine(queue, self.store, tools, request, RunEnvironment(REPO_DIR))
        self.engine._watch._every_s = 0.0
        self.models = ModelStore(folder / "artifacts", ModelId("local", "tiny", "0" * 40))
        self.told: list[str] = []

    def run(self, spec: StageSpec) -> StageResult:
        space = self.models.begin(spec.label, spec.key, spec.request, {}, resumable=False)
        return self.engine.run(spec, space, {}, self.hear)

    def hear(self, progress: Progress) -> None:
        self.told.append(progress.what)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    with kube_server() as state:
        path = str(state.kubeconfig(tmp_path))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
        monkeypatch.setattr("quantyard.batch.batch_engine._SETTLE_S", 0.3)  # a store of this process has no delay
        yield state


@pytest.fixture
def cluster(server: KubeServer, tmp_path: Path) -> Cluster:
    return Cluster(server, tmp_path)


def test_a_stage_runs_in_a_pod_and_says_where(cluster: Cluster, server: KubeServer) -> None:
    result = cluster.run(a_spec())
    assert result.exit_code is ExitCode.DONE and result.ran_on is not None
    [job] = server.of("jobs").values()
    assert result.ran_on.host == "n2"
    assert result.ran_on.job == f"kubernetes {job['metadata']['name']}/{job['metadata']['uid']}"
    cluster.run(a_spec())
    assert server.requests.count("POST jobs") == 1, "the store has its result"


def test_a_key_names_the_image_by_its_digest_alone(cluster: Cluster) -> None:
    tools = KubeTools(ClusterRequest(kube=KubeRequest(image=IMAGE)), FakeEngine)
    mirror = KubeTools(ClusterRequest(kube=KubeRequest(image=IMAGE.replace("registry.lab", "mirror"))), FakeEngine)
    other = KubeTools(ClusterRequest(kube=KubeRequest(image=OTHER_IMAGE)), FakeEngine)
    assert tools.identity("eval") == mirror.identity("builder") != other.identity("eval")
    assert cluster.engine.describe("eval") == {"engine": "kubernetes", "image": IMAGE}


def test_a_pod_of_another_image_than_was_planned_with_refuses_the_stage(cluster: Cluster) -> None:
    cluster.pods.image = OTHER_IMAGE
    with pytest.raises(EngineError, match="other tools than were planned with"):
        cluster.run(a_spec())


@pytest.mark.parametrize("code", [ExitCode.BAD_REQUEST, ExitCode.UNSUPPORTED_MODEL, ExitCode.BUG])
def test_a_stage_that_fails_by_itself_is_not_tried_again(cluster: Cluster, server: KubeServer, code: ExitCode) -> None:
    cluster.pods.engine.behaviours["convert"] = fails(code)
    assert cluster.run(a_spec()).exit_code is code and server.requests.count("POST jobs") == 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (ended(137, "OOMKilled"), "memory ran out; again with"), ({"reason": "NodeLost"}, "the job was lost on n1"),
        ({"conditions": [DISRUPTED]} | ended(143), "the job was lost"), (ended(137), "the job was lost"),
        ({"reason": "Evicted", "message": "The node was low on resource: memory."}, "memory ran out"),
    ],
)  # fmt: skip
def test_what_a_pod_did_not_bring_on_itself_is_tried_again(
    cluster: Cluster, server: KubeServer, state: dict[str, Any], said: str
) -> None:
    cluster.pods.before = [state]
    assert cluster.run(a_spec()).exit_code is ExitCode.DONE
    assert any(said in text for text in cluster.told) and server.requests.count("DELETE jobs") == 1


def test_a_pod_that_fills_its_disk_says_so(cluster: Cluster) -> None:
    cluster.pods.before = [{"reason": "Evicted", "message": "ephemeral local storage usage exceeds the limit"}]
    result = cluster.run(a_spec())
    assert result.exit_code is ExitCode.RESOURCES and result.error is not None and result.error.kind == "out-of-disk"


def test_a_job_that_can_never_start_is_removed_and_the_reason_is_said(cluster: Cluster, server: KubeServer) -> None:
    lacking = 'secret "hub" not found'
    server.on_job = lambda job: server.add_pod(job, waiting("CreateContainerConfigError", lacking), "n1") and None
    with pytest.raises(EngineError, match=r"cannot start.*hub") as caught:
        cluster.run(a_spec())
    assert "Secret" in caught.value.hint and not server.of("jobs")


def test_a_stopped_run_cancels_its_job_within_seconds(cluster: Cluster, server: KubeServer) -> None:
    server.on_job = lambda job: server.add_pod(job, {"phase": "Running"}, "n1") and None
    threading.Timer(0.5, cluster.engine.stop).start()
    with pytest.raises(EngineError, match="stopped"):
        cluster.run(a_spec())
    assert not server.of("jobs")


def test_a_job_of_another_living_process_is_not_cancelled(cluster: Cluster, server: KubeServer) -> None:
    def start(job: dict[str, Any]) -> None:
        job["metadata"]["annotations"]["quantyard/submitter"] = "another-host:1:2"
        server.add_pod(job, {"phase": "Running"}, "n1")

    server.on_job = start
    threading.Timer(0.5, cluster.engine.stop).start()
    cluster.engine._queue.submit(_node_spec_of(cluster), "specs/x.json")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="stopped"):
        cluster.run(a_spec())
    assert len(server.of("jobs")) == 1


def _node_spec_of(cluster: Cluster) -> object:
    return cluster.engine._node_spec(a_spec(), {})


def test_downloads_may_run_where_the_command_is_typed(server: KubeServer, tmp_path: Path) -> None:
    cluster = Cluster(server, tmp_path, network_stages="here", nodes_lack_token=True)
    assert cluster.run(a_spec("fetch")).exit_code is ExitCode.DONE
    assert "fetch" in cluster.here.told and not server.of("jobs")


def test_a_token_that_pods_lack_is_said_before_a_job(server: KubeServer, tmp_path: Path) -> None:
    cluster = Cluster(server, tmp_path, nodes_lack_token=True)
    with pytest.raises(BadRequest) as caught:
        cluster.run(a_spec("fetch"))
    assert "KUBE_HF_SECRET" in caught.value.hint


# ---- doctor ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1000)


def a_request(folder: Path, **settings: str) -> BuildRequest:
    parser = argparse.ArgumentParser()
    add_command_options(parser)
    given = {
        "ARTIFACTS": str(folder), "ENGINE": "kubernetes", "KUBE_IMAGE": IMAGE, "KUBE_CLAIM": "yard",
        "STORE": str(folder / "store"), "KUBE_HF_SECRET": "hub", "KUBE_CPUS_PER_STAGE": "4",
    }  # fmt: skip
    return read_command_request(parser.parse_args([]), given | settings)


@pytest.fixture
def ready(cluster: Cluster, server: KubeServer) -> Cluster:
    """A namespace with all that the settings name."""
    server.add("secrets", {"metadata": {"name": "hub"}})
    server.add("persistentvolumeclaims", {"metadata": {"name": "yard"}, "spec": {"accessModes": ["ReadWriteMany"]}})
    return cluster


def test_doctor_examines_the_whole_way_to_a_pod(ready: Cluster, server: KubeServer, tmp_path: Path) -> None:
    found = {finding.what: finding for finding in examine_kube_cluster(a_request(tmp_path))}
    assert {finding.state for finding in found.values()} == {"ok"}, found
    assert list(found) == [
        "Kubernetes", "permissions", "KUBE_HF_SECRET=hub", "KUBE_CLAIM=yard", "shared store", "nodes", "pod",
    ]  # fmt: skip
    assert "v1.37.0" in found["Kubernetes"].value and "namespace lab" in found["Kubernetes"].value
    assert "4 stages at a time, each at most 4 CPUs" in found["nodes"].value
    assert found["pod"].value.startswith("on n2") and not server.of("jobs") and not list(ready.store.names("checks/"))


def test_doctor_names_the_right_that_is_missing(ready: Cluster, server: KubeServer, tmp_path: Path) -> None:
    server.denied = {("create", "networkpolicies")}
    *_, last = examine_kube_cluster(a_request(tmp_path))
    assert last.state == "missing" and "create networkpolicies" in last.value and not server.of("jobs")


def test_doctor_says_which_secret_is_missing(ready: Cluster, server: KubeServer, tmp_path: Path) -> None:
    server.of("secrets").clear()
    found = {finding.what: finding for finding in examine_kube_cluster(a_request(tmp_path))}
    assert found["KUBE_HF_SECRET=hub"].state == "missing" and "pod" not in found


def test_doctor_tells_an_image_of_another_version(
    ready: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantyard.node.check.engine_code_version", lambda _dir, _image: "0" * 64)
    assert engine_code_version(REPO_DIR, "builder") != "0" * 64
    *_, last = examine_kube_cluster(a_request(tmp_path))
    assert last.what == "pod" and last.state == "missing" and "another version" in last.value


def test_doctor_says_why_no_pod_comes_up(ready: Cluster, server: KubeServer, tmp_path: Path) -> None:
    server.on_job = lambda job: server.add_pod(job, waiting("InvalidImageName", "it is not valid"), "n1") and None
    *_, last = examine_kube_cluster(a_request(tmp_path))
    assert last.what == "pod" and "InvalidImageName" in last.value and "KUBE_IMAGE" in last.remedy


def test_doctor_says_that_the_api_does_not_answer(server: KubeServer, tmp_path: Path) -> None:
    server.refused["GET version"] = 503
    [only] = examine_kube_cluster(a_request(tmp_path))
    assert only.state == "missing" and "does not answer" in only.value
