"""An engine over a queue and a shared store: a stage is a job of a cluster, and its files come back by digest.

The store decides what is done, the queue only what runs: a result that is committed is taken, whoever computed it and
whatever became of the job. The tools of the nodes are those of an engine of this machine, which gives their identity.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from quantyard.batch import BatchQueue, JobStatus, SubmittedJob
from quantyard.batch.asking_pace import AskingPace
from quantyard.batch.job_watch import JobWatch
from quantyard.batch.pushed_images import PushedImages
from quantyard.batch.retries import NextTry, StageTries
from quantyard.batch.stage_resources import stage_node_resources
from quantyard.engines import Engine, OnNote, OnProgress
from quantyard.engines.capacity import Capacity
from quantyard.engines.images import engine_code_version
from quantyard.engines.stage_io import engine_timeout_error
from quantyard.errors import BadRequest, EngineError, QuantyardError, StoreUnreachable
from quantyard.formatting.numbers import format_memory
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, Progress, RanOn, StageError, StageResult, json_digest
from quantyard.protocol.node_spec import ENDED, NodeEnd, NodeInput, NodeSpec
from quantyard.protocol.runner import file_sha256
from quantyard.requests import ClusterRequest, RunEnvironment
from quantyard.shared_store.attempts import PROGRESS, attempt_prefixes, remove_attempt
from quantyard.shared_store.commits import CommittedResult, committed_result
from quantyard.shared_store.contents import get_content, put_content
from quantyard.shared_store.leases import end_lease_of_job
from quantyard.shared_store.objects import ObjectStore
from quantyard.store.artifact import Artifact, Workspace
from quantyard.store.take_outputs import FILES

_STEP_S: Final = 0.2
_RESULT_S, _PROGRESS_S = (0.2, 10.0), (1.5, 10.0)  # least and most between two questions to the store; when a job ends,
# it is asked at once, and the queue says so for all jobs together
_SETTLE_S: Final = 5.0  # clients of NFS remember for seconds that a name was absent
_KILLED_CODE: Final = 128
_TOLD_CODES: Final = frozenset({ExitCode.BAD_REQUEST, ExitCode.NETWORK, ExitCode.RESOURCES})  # of a node's command
_STOPPED: Final = "The stage was stopped."
_NODES_COMMANDS: Final = {"slurm": "sinfo -R", "kubernetes": "kubectl describe nodes"}
_TOKEN_HINTS: Final = {
    "slurm": "Type: hf auth login (nodes read its file in your home), or NETWORK_STAGES=here",
    "kubernetes": "Make a Secret with the key HF_TOKEN, and name it: KUBE_HF_SECRET=name; or NETWORK_STAGES=here",
}


@dataclass
class _Wait:
    """One stage that a thread waits for."""

    spec: StageSpec
    on_progress: OnProgress
    stopped: threading.Event
    result_pace: AskingPace = field(default_factory=lambda: AskingPace(*_RESULT_S))
    progress_pace: AskingPace = field(default_factory=lambda: AskingPace(*_PROGRESS_S))
    state: str = ""  # of its job
    told: str = ""

    def take_state(self, state: str) -> None:
        """Ask often again, for the job has just been submitted or started."""
        if state != self.state:
            self.state = state
            self.result_pace, self.progress_pace = AskingPace(*_RESULT_S), AskingPace(*_PROGRESS_S)


class BatchEngine:
    """Runs stages through a queue.

    Args:
        tools: the engine of this machine whose tools the nodes have too; it runs what must run here.
        images: where nodes pull their image from; None: they have their tools.
    """

    def __init__(
        self, queue: BatchQueue, store: ObjectStore, tools: Engine, cluster: ClusterRequest,
        environment: RunEnvironment, images: PushedImages | None = None,
    ) -> None:
        self.name = queue.name
        self._queue, self._store, self._tools = queue, store, tools
        self._cluster, self._environment = cluster, environment
        self._images = images
        self._watch = JobWatch(queue)
        self._waits: set[threading.Event] = set()

    def capacity(self) -> Capacity:
        """The capacity of one job."""
        return self._queue.capacity()

    def identity(self, image: str) -> str | None:
        """That of this machine's tools; a node with others refuses the stage."""
        return self._tools.identity(image)

    def prepare(self, image: str, on_note: OnNote) -> None:
        """Make the tools ready here, where the nodes find them too, or push them to where nodes pull them from."""
        self._tools.prepare(image, on_note)
        if self._images:
            self._images.push_missing(image, on_note)

    def describe(self, image: str) -> dict[str, str]:
        """The tools of this machine; a result names those of the node that made it."""
        return self._tools.describe(image)

    def converter_list(self) -> str | None:
        """That of this machine's tools."""
        return self._tools.converter_list()

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Run one stage as a job, or take the result that the store has.

        Raises:
            EngineError: the queue refuses or loses the job, or a node cannot run it; see also Engine.
        """
        if spec.row.network and self._cluster.network_stages == "here":
            return self._tools.run(spec, space, inputs, on_progress)
        if "HF_TOKEN" in spec.row.secrets and self._cluster.nodes_lack_token:
            message = f"HF_TOKEN is set here, and {spec.label} runs on a node, which does not see it."
            raise BadRequest(message, _TOKEN_HINTS[self.name])
        wait = _Wait(spec, on_progress, threading.Event())
        self._waits.add(wait.stopped)
        try:
            found = committed_result(self._store, spec.key)
            end = found or self._run_until_end(wait, self._node_spec(spec, inputs))
        finally:
            self._waits.discard(wait.stopped)
        return self._take_files(end, space) if isinstance(end, CommittedResult) else end

    def stop(self) -> None:
        """Cancel the jobs that this process waits for, unless another one waits for them."""
        for stopped in tuple(self._waits):
            stopped.set()

    # ---- before ----------------------------------------------------------------------------------------

    def _node_spec(self, spec: StageSpec, inputs: Mapping[str, Artifact]) -> NodeSpec:
        return NodeSpec(
            label=spec.label, stage=spec.row.name, key=spec.key,
            code=engine_code_version(self._environment.repo_dir, spec.row.code),
            image=self._tools.identity(spec.row.image) or "", engine=self._cluster.node_engine,
            pull=self._images.push_missing(spec.row.image, lambda _: None) if self._images else "",
            request=spec.request.model_dump(mode="json"),
            inputs={name: self._put_input(artifact) for name, artifact in inputs.items()},
            resources=stage_node_resources(spec, inputs, self.capacity(), self._environment),
            network=spec.row.network, secrets=spec.row.secrets, time_limit_s=spec.row.timeout_s,
        )

    def _put_input(self, artifact: Artifact) -> NodeInput:
        files = []
        for entry in artifact.files:
            path = artifact.place_of(entry.path)
            sha256 = entry.sha256 or file_sha256(path)
            put_content(self._store, path, sha256)
            files.append(entry.model_copy(update={"sha256": sha256}))
        return NodeInput(digest=artifact.digest, files=tuple(files))

    def _put_spec(self, spec: NodeSpec) -> str:
        text = spec.model_dump_json(indent=1).encode()
        name = f"specs/{spec.key}-{json_digest(spec.model_dump(mode='json'))[:12]}.json"
        self._store.put_if_absent(name, text)
        return name

    # ---- while it runs ---------------------------------------------------------------------------------

    def _run_until_end(self, wait: _Wait, spec: NodeSpec) -> CommittedResult | StageResult:
        tries = StageTries(spec, self.capacity().memory_bytes)
        last: StageResult | EngineError | None = None
        while True:
            try:
                job = self._queue.submit(tries.spec, self._put_spec(tries.spec), tries.avoided)
            except EngineError:
                if last is None or not tries.avoided:
                    raise
                return _result_or_error(last)  # no node is left to try it on
            end = self._follow_job(wait, spec, job)
            if isinstance(end, CommittedResult):
                return end
            again, last = self._judge_end(wait.spec, tries, job, end)
            if again is None:
                return _result_or_error(last)
            end_lease_of_job(self._store, spec.key, f"{self.name} {job.id}")
            self._say(wait, again.reason, always=True)
            if wait.stopped.wait(again.wait_s):
                raise EngineError(_STOPPED)

    def _follow_job(self, wait: _Wait, spec: NodeSpec, job: SubmittedJob) -> CommittedResult | NodeEnd | JobStatus:
        """Wait for a job. If this thread is interrupted or stopped, cancel it; if the queue or the store fails, the job
        goes on, and the next run attaches to it.
        """
        self._watch.add_job(job.id)
        try:
            while True:
                if wait.result_pace.is_due() and (found := committed_result(self._store, spec.key)):
                    return found
                status = self._watch.job_status(job.id)
                if status.state in ("ended", "lost"):
                    return self._end_of_job(spec, job.id, status) or status
                wait.take_state(status.state)
                self._tell_progress(wait, spec, status)
                if wait.stopped.wait(_STEP_S):
                    raise EngineError(_STOPPED)
        except BaseException as error:
            if job.ours and (wait.stopped.is_set() or not isinstance(error, Exception)):
                self._queue.cancel([job.id])
            raise
        finally:
            self._watch.remove_job(job.id)

    def _end_of_job(self, spec: NodeSpec, job_id: str, status: JobStatus) -> CommittedResult | NodeEnd | None:
        """What a job that has ended left in the store; None if nothing. If it ended by itself, it is waited for."""
        until = time.monotonic() + (_SETTLE_S if status.exit_code is not None else 0.0)
        while True:
            if found := committed_result(self._store, spec.key):
                return found
            for prefix in attempt_prefixes(self._store, spec.key):
                if (end := self._read_end(prefix)) is not None and end.job == f"{self.name} {job_id}":
                    remove_attempt(self._store, prefix)
                    return end
            if time.monotonic() >= until:
                return None
            time.sleep(_STEP_S)

    def _read_end(self, prefix: str) -> NodeEnd | None:
        with suppress(FileNotFoundError, ValidationError):
            return NodeEnd.model_validate_json(self._store.read_bytes(prefix + ENDED))
        return None

    def _tell_progress(self, wait: _Wait, spec: NodeSpec, status: JobStatus) -> None:
        if not wait.progress_pace.is_due():
            return
        if self._watch.is_silent:
            self._say(wait, "the queue does not answer")
        elif status.state == "queued":
            self._say(wait, f"in the queue ({status.reason})" if status.reason else "in the queue")
        elif (progress := self._read_progress(spec)) is not None:
            wait.on_progress(progress)
        else:
            self._say(wait, f"starting on {status.node}")

    def _say(self, wait: _Wait, text: str, *, always: bool = False) -> None:
        if always or text != wait.told:
            wait.told = text
            wait.on_progress(Progress(stage=wait.spec.row.name, done=0, total=None, unit="checks", what=text))

    def _read_progress(self, spec: NodeSpec) -> Progress | None:
        for prefix in attempt_prefixes(self._store, spec.key):
            with suppress(FileNotFoundError, ValidationError, StoreUnreachable):
                progress = Progress.model_validate_json(self._store.read_bytes(prefix + PROGRESS), strict=True)
                return progress if progress.stage == spec.stage else None
        return None

    # ---- after -----------------------------------------------------------------------------------------

    def _judge_end(
        self, stage: StageSpec, tries: StageTries, job: SubmittedJob, end: NodeEnd | JobStatus
    ) -> tuple[NextTry | None, StageResult | EngineError]:
        """Whether to try again, and what the end is if not."""
        if isinstance(end, NodeEnd):
            if end.result is not None:
                return tries.after_end(end), _result_on_node(end)
            error = end.error or StageError(kind="engine", message=f"{stage.label}: {end.node.host} gave no reason.")
            return None, EngineError(error.message, error.hint, error.detail)
        tail = self._queue.log_tail(job.id, tries.spec)
        where = f" on {end.node}" if end.node else ""
        match end.fate:
            case "time":
                return None, engine_timeout_error(stage)
            case "cancelled":
                message = f"{stage.label}: job {job.id} was cancelled by somebody else."
                return None, EngineError(message, "Type the same command again.", tail)
            case "memory":
                return tries.after_memory(), _out_of_node_memory(stage, tries.spec, where, tail)
            case "disk":
                return None, _out_of_node_disk(stage, end, where)
            case "refused":
                self._queue.cancel([job.id] * job.ours)
                return None, EngineError(f"{stage.label}: job {job.id} cannot start: {end.reason}", end.hint, tail)
        if end.exit_code in _TOLD_CODES:  # it could not write into the store, so only its log says why
            told = _end_by_log(stage, job, end, tail)
            return tries.after_silent_end(told), _result_on_node(told)
        if end.exit_code is not None and 0 < end.exit_code < _KILLED_CODE:
            message = f"{stage.label}: job {job.id}{where} ended with exit code {end.exit_code}, and did not say why."
            hint = f"Its last lines are above. Check the store and that node: make doctor ENGINE={self.name}"
            return None, EngineError(message, hint, tail)
        message = f"{stage.label}: job {job.id} was lost{where}, as {tries.spec.retry.lost_nodes} before it."
        hint = f"See how the nodes are: {_NODES_COMMANDS[self.name]}; then type the same command again."
        return tries.after_lost(end), EngineError(message, hint, tail)

    def _take_files(self, found: CommittedResult, space: Workspace) -> StageResult:
        """Bring the files of a committed result into the workspace, where the orchestrator checks them."""
        (space.out_dir / FILES).mkdir(parents=True, exist_ok=True)
        for entry in found.outputs:
            target = space.out_dir / FILES / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                target.unlink()
            get_content(self._store, entry.sha256 or "", target)
        return found.result


def _result_on_node(end: NodeEnd) -> StageResult:
    assert end.result is not None
    return end.result.model_copy(update={"ran_on": end.node})


def _end_by_log(stage: StageSpec, job: SubmittedJob, end: JobStatus, tail: str) -> NodeEnd:
    """How a node ended whose command had one of our exit codes, and which could not say more in the store."""
    code = ExitCode(end.exit_code or 0)
    error = StageError(
        kind=f"node-{code.name.lower().replace('_', '-')}", detail=tail,
        message=f"Job {job.id} on {end.node or 'its node'} ended with exit code {int(code)}, and could not write why "
        "into the store; its last lines are above.",
        hint="Mend what they name on that node, or its mount of the store; then type the same command again.",
    )  # fmt: skip
    return NodeEnd(
        node=RanOn(host=end.node), result=StageResult(stage=stage.row.name, exit_code=code, error=error)
    )


def _result_or_error(last: StageResult | EngineError) -> StageResult:
    if isinstance(last, QuantyardError):
        raise last
    return last


def _out_of_node_memory(stage: StageSpec, spec: NodeSpec, where: str, tail: str) -> StageResult:
    given = format_memory(spec.resources.memory_bytes)
    error = StageError(
        kind="out-of-memory", message=f"Memory ran out{where}: the job had {given}.",
        hint="Give stages more: MEMORY=32GiB", detail=tail,
    )  # fmt: skip
    return StageResult(stage=stage.row.name, exit_code=ExitCode.RESOURCES, error=error)


def _out_of_node_disk(stage: StageSpec, end: JobStatus, where: str) -> StageResult:
    error = StageError(
        kind="out-of-disk", message=f"The disk ran out{where}: {end.reason}",
        hint="Choose nodes with more of their own disk; a smaller model needs less.",
    )  # fmt: skip
    return StageResult(stage=stage.row.name, exit_code=ExitCode.RESOURCES, error=error)


def batch_logs_folder(artifacts: Path) -> Path:
    """Where jobs write what they print."""
    return artifacts / ".cluster" / "logs"


def batch_store_url(cluster: ClusterRequest, artifacts: Path) -> str:
    """The store that machines share: as set, else below the folder of artifacts, which must be on all of them."""
    return cluster.store or str(artifacts / ".cluster" / "store")
