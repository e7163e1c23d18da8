"""An engine over a queue and a shared store, with a queue that runs the node's command in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from quantyard.batch import JobStatus, SubmittedJob
from quantyard.batch.batch_engine import BatchEngine
from quantyard.batch.retries import NextTry, StageTries
from quantyard.engines.capacity import Capacity
from quantyard.engines.images import engine_code_version
from quantyard.errors import BadRequest, EngineError, NotEnoughDisk, QuantyardError, StoreUnreachable
from quantyard.node.input_cache import InputCache
from quantyard.node.run import NodePlace, read_node_spec, run_node_spec
from quantyard.paths import REPO_DIR
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import StageSpec, Step, step_spec
from quantyard.protocol.base import ExitCode, FileEntry, Progress, StageResult, files_digest
from quantyard.protocol.builder import ConvertRequest, FetchRequest, QuantizeRequest
from quantyard.protocol.node_spec import NodeEnd, NodeSpec
from quantyard.protocol.runner import file_sha256
from quantyard.requests import ClusterRequest, RunEnvironment
from quantyard.shared_store.attempts import attempt_prefixes
from quantyard.shared_store.commits import (
    Commit,
    CommittedResult,
    commit_result,
    committed_result,
    differing_results,
)
from quantyard.shared_store.contents import put_content
from quantyard.shared_store.leases import LeaseWatch, new_lease_owner, take_lease
from quantyard.shared_store.posix_objects import PosixObjects
from quantyard.store.artifact import Artifact, ModelId, Workspace
from quantyard.store.stages import ModelStore
from tests.unit.fake_engine import FakeEngine, fails, writes

GIB = 2**30


@dataclass
class HereQueue:
    """A queue whose only node is this process: a job has ended when it is submitted. `fates` are those of the first
    jobs, which are not run.
    """

    place: NodePlace
    engine: FakeEngine
    fates: list[JobStatus] = field(default_factory=list)
    submitted: list[NodeSpec] = field(default_factory=list)
    avoided: list[set[str]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended: dict[str, JobStatus] = field(default_factory=dict)
    name: str = "slurm"
    ours: bool = True
    notes: list[str] = field(default_factory=list)  # of the nodes

    def capacity(self) -> Capacity:
        return Capacity("slurm main", 4, 64 * GIB, 2, nodes=2)

    def submit(self, spec: NodeSpec, spec_name: str, avoid: Collection[str] = ()) -> SubmittedJob:
        self.submitted.append(spec)
        self.avoided.append(set(avoid))
        job = str(len(self.submitted))
        if self.fates:
            self.ended[job] = self.fates.pop(0)
        else:
            self.ended[job] = JobStatus("ended", exit_code=self._run(spec_name, job))
        return SubmittedJob(job, self.ours)

    def _run(self, spec_name: str, job: str) -> int:
        place = NodePlace(self.place.store, self.place.scratch, self.place.repo_dir, self.place.host, f"slurm {job}")
        try:
            run_node_spec(read_node_spec(place.store, spec_name), place, self.engine, self.notes.append)
        except QuantyardError as error:
            return error.code
        return 0

    def poll(self, ids: Collection[str]) -> Mapping[str, JobStatus]:
        return {job: self.ended[job] for job in ids}

    def cancel(self, ids: Collection[str]) -> None:
        self.cancelled += ids

    def log_tail(self, job_id: str, spec: NodeSpec) -> str:
        return f"the last line of {job_id} ({spec.label})"


@dataclass
class Cluster:
    """A batch engine over HereQueue, and a model's store of the machine that plans."""

    engine: BatchEngine
    queue: HereQueue
    store: PosixObjects
    models: ModelStore
    told: list[str] = field(default_factory=list)

    def run(self, spec: StageSpec, inputs: Mapping[str, Artifact] | None = None) -> StageResult:
        space = self.models.begin(spec.label, spec.key, spec.request, inputs or {}, resumable=False)
        result = self.engine.run(spec, space, inputs or {}, self._hear)
        if result.exit_code is ExitCode.DONE:
            return self.models.finish(spec.label, spec.key, space, result, spec.leaves).result
        return result

    def _hear(self, progress: Progress) -> None:
        self.told.append(progress.what)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return a_cluster(tmp_path)


def a_cluster(tmp_path: Path, **settings: object) -> Cluster:
    store = PosixObjects(tmp_path / "store")
    queue = HereQueue(NodePlace(store, tmp_path / "scratch", REPO_DIR, "node1"), FakeEngine())
    request = ClusterRequest(**settings)  # type: ignore[arg-type]
    engine = BatchEngine(queue, store, FakeEngine(), request, RunEnvironment(REPO_DIR))
    engine._watch._every_s = 0.0
    return Cluster(engine, queue, store, ModelStore(tmp_path / "artifacts", ModelId("local", "tiny", "0" * 40)))


def a_spec(stage: str = "convert", inputs: Mapping[str, Artifact] | None = None) -> StageSpec:
    requests = {
        "convert": lambda: ConvertRequest(name="tiny"), "quantize": lambda: QuantizeRequest(quant="Q8_0", ftype=7),
        "fetch": lambda: FetchRequest(repo_id="a/b", commit="c" * 40, files=()),
    }  # fmt: skip
    step = Step(stage, STAGES[stage], requests[stage](), {}, 0)
    digests = {name: artifact.digest for name, artifact in (inputs or {}).items()}
    return step_spec(step, digests, engine_code_version(REPO_DIR, "builder"), "image-1")


def an_input(folder: Path, text: str = "weights") -> Artifact:
    folder.mkdir()
    (folder / "model.gguf").write_text(text)
    entry = FileEntry(path="model.gguf", size_bytes=len(text), sha256=file_sha256(folder / "model.gguf"))
    return Artifact(files_digest((entry,)), (entry,), folder)


def test_a_stage_runs_on_a_node_and_its_files_come_back(cluster: Cluster, tmp_path: Path) -> None:
    given = {"source": an_input(tmp_path / "model")}
    result = cluster.run(a_spec("quantize", given), given)
    assert result.ran_on is not None and (result.ran_on.host, result.ran_on.job) == ("node1", "slurm 1")
    assert result.ran_on.tools == {"engine": "fake"}
    finished = cluster.models.finished("quantize", a_spec("quantize", given).key)
    assert finished is not None and (finished.artifact.folder / "model.gguf").read_text() == "model.gguf of quantize"
    assert cluster.queue.engine.told["quantize"]["source"][0]["path"] == "model.gguf"
    assert not attempt_prefixes(cluster.store, a_spec("quantize", given).key)
    assert not list((tmp_path / "scratch" / "work").rglob("model.gguf"))


def test_a_result_that_is_committed_is_taken_without_a_job(cluster: Cluster, tmp_path: Path) -> None:
    first = cluster.run(a_spec())
    other = a_cluster(tmp_path)
    other.models = ModelStore(tmp_path / "elsewhere", ModelId("local", "tiny", "0" * 40))
    assert other.run(a_spec()) == first and not other.queue.submitted


def test_a_second_result_with_other_bytes_is_kept_aside_and_said_and_the_first_is_taken(
    cluster: Cluster, tmp_path: Path
) -> None:
    given, faster = {"source": an_input(tmp_path / "model")}, an_input(tmp_path / "faster", "bytes of a faster node")
    spec = a_spec("quantize", given)

    def overtaken(stage: StageSpec, space: Workspace) -> StageResult:
        put_content(cluster.store, faster.place_of("model.gguf"), faster.files[0].sha256 or "")
        result = StageResult(stage="quantize", exit_code=ExitCode.DONE, outputs=faster.files)
        record = CommittedResult(
            key=stage.key, label=stage.label, result=result, attempt="node9-1-0a1b2c3d4e5f", ended_at=datetime.now(UTC)
        )
        assert commit_result(cluster.store, record) is Commit.WON
        return writes("model.gguf")(stage, space)

    cluster.queue.engine.behaviours["quantize"] = overtaken
    assert cluster.run(spec, given).outputs == faster.files
    (kept,) = differing_results(cluster.store, spec.key)
    assert cluster.queue.notes == [
        f"warning: another node committed quantize with other bytes; this result is kept as {kept}"
    ]


@pytest.mark.parametrize("code", [ExitCode.BAD_REQUEST, ExitCode.UNSUPPORTED_MODEL, ExitCode.BUG])
def test_a_stage_that_fails_by_itself_is_not_tried_again(cluster: Cluster, code: ExitCode) -> None:
    cluster.queue.engine.behaviours["convert"] = fails(code)
    result = cluster.run(a_spec())
    assert result.exit_code is code and result.error is not None and result.error.kind == "planned"
    assert len(cluster.queue.submitted) == 1 and committed_result(cluster.store, a_spec().key) is None
    assert not attempt_prefixes(cluster.store, a_spec().key), "the failure was heard"


def test_memory_that_ran_out_is_tried_once_with_more(cluster: Cluster) -> None:
    cluster.queue.fates = [JobStatus("ended", fate="memory", node="node1")]
    assert cluster.run(a_spec()).exit_code is ExitCode.DONE
    first, second = (spec.resources.memory_bytes for spec in cluster.queue.submitted)
    assert second == 2 * first and "memory ran out" in cluster.told[0]


def test_a_full_disk_sends_the_stage_to_another_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    make_room, full = InputCache.make_room, [True]

    def fill_once(cache: InputCache, needed_bytes: int) -> None:
        if full and full.pop():
            raise NotEnoughDisk("/scratch has 1 MB free, and the stage needs 2 MB.", "Free some.")
        make_room(cache, needed_bytes)

    monkeypatch.setattr(InputCache, "make_room", fill_once)
    assert cluster.run(a_spec()).exit_code is ExitCode.DONE
    assert cluster.queue.avoided == [set(), {"node1"}]


def test_a_job_that_is_lost_is_submitted_three_times_more_and_then_given_up(cluster: Cluster) -> None:
    cluster.queue.fates = [JobStatus("ended", fate="node", node="node1"), JobStatus("lost")]
    assert cluster.run(a_spec()).exit_code is ExitCode.DONE and len(cluster.queue.submitted) == 3
    cluster.queue.fates = [JobStatus("lost")] * 9
    with pytest.raises(EngineError, match="was lost") as caught:
        cluster.run(a_spec("quantize"))
    assert len(cluster.queue.submitted) == 3 + 4 and "sinfo -R" in caught.value.hint
    assert "the last line" in caught.value.detail


@pytest.mark.parametrize(("code", "tries"), [(2, 1), (4, 4), (5, 1)])
def test_a_node_that_cannot_write_into_the_store_ends_the_stage_with_its_own_exit_code(
    cluster: Cluster, code: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantyard.batch.batch_engine._SETTLE_S", 0.0)
    decide = StageTries.after_silent_end

    def at_once(tries: StageTries, end: NodeEnd) -> NextTry | None:
        return replace(again, wait_s=0.0) if (again := decide(tries, end)) else None

    monkeypatch.setattr(StageTries, "after_silent_end", at_once)
    cluster.queue.fates = [JobStatus("ended", exit_code=code, node="node1")] * 5
    result = cluster.run(a_spec())
    assert result.exit_code == code and len(cluster.queue.submitted) == tries and result.error
    assert "on node1" in result.error.message and "the last line of" in result.error.detail and result.error.hint


def test_the_lease_of_a_job_that_has_ended_holds_up_no_other(cluster: Cluster) -> None:
    spec = a_spec()
    owner = new_lease_owner("slurm 1")
    assert take_lease(LeaseWatch(cluster.store, spec.key), owner, 60) is None
    cluster.queue.fates = [JobStatus("ended", exit_code=137, node="node1")]
    began = time.monotonic()
    assert cluster.run(spec).exit_code is ExitCode.DONE and time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (JobStatus("ended", fate="cancelled"), "cancelled by somebody else"),
        (JobStatus("ended", fate="time"), "longer than its limit"),
        (JobStatus("ended", exit_code=1, node="node1"), "ended with exit code 1"),
    ],
)
def test_what_the_queue_ends_is_said_and_not_tried_again(
    cluster: Cluster, status: JobStatus, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantyard.batch.batch_engine._SETTLE_S", 0.1)
    cluster.queue.fates = [status]
    with pytest.raises(EngineError, match=words) as caught:
        cluster.run(a_spec())
    assert caught.value.hint and len(cluster.queue.submitted) == 1


@pytest.mark.parametrize("ours", [True, False])
def test_an_interrupt_cancels_only_jobs_that_this_process_answers_for(cluster: Cluster, ours: bool) -> None:
    cluster.queue.fates, cluster.queue.ours = [JobStatus("running", node="node1")], ours

    def interrupt(_progress: Progress) -> None:
        raise KeyboardInterrupt

    cluster._hear = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cluster.run(a_spec())
    assert cluster.queue.cancelled == (["1"] if ours else [])


def test_a_store_or_a_queue_that_fails_leaves_the_job_to_the_next_run(cluster: Cluster) -> None:
    cluster.queue.fates = [JobStatus("running", node="node1")]

    def lose_store(_progress: Progress) -> None:
        raise StoreUnreachable("The store does not answer.")

    cluster._hear = lose_store  # type: ignore[method-assign]
    with pytest.raises(StoreUnreachable):
        cluster.run(a_spec())
    assert cluster.queue.cancelled == []


def test_a_stopped_engine_ends_its_waits_and_cancels_their_jobs(cluster: Cluster) -> None:
    cluster.queue.fates = [JobStatus("running", node="node1")]
    hear: Callable[[Progress], None] = lambda _progress: cluster.engine.stop()  # noqa: E731
    cluster._hear = hear  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="stopped"):
        cluster.run(a_spec())
    assert cluster.queue.cancelled == ["1"]


def test_a_node_with_other_tools_or_another_version_refuses_the_stage(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.queue.engine.image = "image-2"
    with pytest.raises(EngineError, match="node1 has other tools than were planned with: image-2, and not image-1"):
        cluster.run(a_spec())
    monkeypatch.setattr("quantyard.node.run.engine_code_version", lambda _repo, _package: "f" * 64)
    with pytest.raises(EngineError, match="node1 has stages of another version"):
        cluster.run(a_spec())
    assert committed_result(cluster.store, a_spec().key) is None


def test_a_token_that_nodes_do_not_see_is_refused_and_stages_with_a_network_may_run_here(tmp_path: Path) -> None:
    cluster = a_cluster(tmp_path, nodes_lack_token=True)
    with pytest.raises(BadRequest, match="HF_TOKEN is set here") as caught:
        cluster.run(a_spec("fetch"))
    assert "hf auth login" in caught.value.hint and "NETWORK_STAGES=here" in caught.value.hint
    here = a_cluster(tmp_path / "here", nodes_lack_token=True, network_stages="here")
    assert here.run(a_spec("fetch")).exit_code is ExitCode.DONE and not here.queue.submitted


def test_inputs_that_were_not_used_for_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = InputCache(PosixObjects(tmp_path / "store"), tmp_path / "cas")
    for name, used_at in (("old", 1), ("new", 2)):
        (tmp_path / "cas" / name).write_bytes(b"x")
        os.utime(tmp_path / "cas" / name, (used_at, used_at))
    old = tmp_path / "cas" / "old"
    monkeypatch.setattr(InputCache, "_free_bytes", lambda _self: 0 if old.exists() else 10**9)
    cache.make_room(1000)
    assert [path.name for path in (tmp_path / "cas").iterdir()] == ["new"]
    monkeypatch.setattr(InputCache, "_free_bytes", lambda _self: 0)
    with pytest.raises(NotEnoughDisk, match="0 B free"):
        cache.make_room(1000)
