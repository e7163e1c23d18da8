"""Runs one `NodeSpec` on this machine: takes its inputs, runs the stage, uploads its files, commits the result."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from quantyard.engines import Engine
from quantyard.engines.images import engine_code_version
from quantyard.errors import BadRequest, EngineError, QuantyardError, ResultRefused, StageFailed
from quantyard.files.safe_files import remove_tree
from quantyard.formatting.numbers import format_exact_bytes
from quantyard.node.heartbeat import LIVES_S, Heartbeat
from quantyard.node.input_cache import InputCache
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, RanOn, StageError, StageResult
from quantyard.protocol.node_spec import ENDED, MAX_SPEC_BYTES, NodeEnd, NodeSpec, image_identity
from quantyard.protocol.stage_requests import parse_stage_request
from quantyard.shared_store.attempts import Attempt, begin_attempt
from quantyard.shared_store.commits import Commit, CommittedResult, commit_result, committed_result, differing_name
from quantyard.shared_store.contents import put_content
from quantyard.shared_store.leases import LeaseWatch, end_lease, new_lease_owner, take_lease
from quantyard.shared_store.objects import ObjectStore
from quantyard.store.artifact import ModelId, Workspace
from quantyard.store.stages import ModelStore
from quantyard.store.take_outputs import FILES

_WAIT_STEP_S: Final = 1.0
_STAGE_CODES: Final = frozenset(int(code) for code in ExitCode)
_WORK: Final = "work"
_SAME_VERSION: Final = "The node and the machine that planned must have the same version of Quantyard."


@dataclass(frozen=True)
class NodePlace:
    """A machine as a node: the store that it shares, its own folder, and its name in the queue."""

    store: ObjectStore
    scratch: Path
    repo_dir: Path
    host: str
    job: str = ""  # as the queue names it
    image: str = ""  # by digest, of a node that is a pod: its tools

    def tools_identity(self, engine: Engine, image: str) -> str | None:
        """The identity of the tools that a stage of this image finds here."""
        return image_identity(self.image) if self.image else engine.identity(image)


def read_node_spec(store: ObjectStore, name: str) -> NodeSpec:
    """A spec: a file of this machine, or the name of one in the store.

    Raises:
        BadRequest: it is missing, or not valid.
    """
    try:
        path = Path(name)
        text = path.read_bytes() if path.is_file() else store.read_bytes(name)
        if len(text) > MAX_SPEC_BYTES:
            raise ValueError(f"it has more than {format_exact_bytes(MAX_SPEC_BYTES)}")
        return NodeSpec.model_validate_json(text)
    except FileNotFoundError as error:
        message = f"{name} is neither a file nor in {store.url}."
        raise BadRequest(message, "Give the spec that a queue's job names.") from error
    except ValueError as error:
        message = f"{name} is not a spec of this version of Quantyard: {str(error).splitlines()[0]}."
        raise BadRequest(message, _SAME_VERSION) from error


def run_node_spec(spec: NodeSpec, place: NodePlace, engine: Engine, on_note: Callable[[str], None]) -> StageResult:
    """Run a stage here, and commit its result; one that is committed already is not run again.

    Raises:
        StageFailed: the stage ended with an error of its own.
        EngineError: this node's tools are others than those that the spec names, or cannot be used.
        QuantyardError: the inputs, the disk or the store cannot be used. The store says why, for who waits for the job.
    """
    owner, watch = new_lease_owner(place.job), LeaseWatch(place.store, spec.key)
    while (there := take_lease(watch, owner, LIVES_S)) is not None:
        if found := committed_result(place.store, spec.key):
            return found.result
        if place.job and there.owner.job == place.job:  # the queue started this job again, so that attempt is dead
            end_lease(place.store, spec.key, there.owner)
            continue
        on_note(f"waiting: {there.owner} runs {spec.label}")
        time.sleep(_WAIT_STEP_S)
    attempt = begin_attempt(place.store, spec.key, owner, LIVES_S)
    ran_on = RanOn(host=place.host, job=place.job)
    try:
        found = committed_result(place.store, spec.key)
        result = found.result if found else _committed_run(spec, place, engine, attempt, ran_on, on_note)
    except QuantyardError as error:
        attempt.put(ENDED, _node_end(place.job, spec, ran_on, error).model_dump_json().encode())
        raise
    except BaseException:
        attempt.end()
        raise
    else:
        attempt.end()
        return result
    finally:
        end_lease(place.store, spec.key, owner)


def _committed_run(
    spec: NodeSpec, place: NodePlace, engine: Engine, attempt: Attempt, ran_on: RanOn, on_note: Callable[[str], None]
) -> StageResult:
    stage = _stage_of_node_spec(spec)
    _check_node_tools(spec, stage, place, engine)
    work = ModelStore(place.scratch / _WORK, ModelId("quantyard", stage.row.name, spec.key))
    with Heartbeat(attempt) as heartbeat, ExitStack() as held, ThreadPoolExecutor(1) as beside:
        tools = beside.submit(engine.describe, stage.row.image)  # it asks other processes
        cache = InputCache(place.store, place.scratch / "cas")
        cache.make_room(cache.missing_bytes(list(spec.inputs.values())) + spec.resources.scratch_bytes)
        inputs = {name: cache.fetch_input(given, held) for name, given in spec.inputs.items()}
        space = work.begin(spec.label, spec.key, stage.request, inputs, stage.row.resumable)
        try:
            result = engine.run(stage, space, inputs, heartbeat.take_progress)
            if result.exit_code is not ExitCode.DONE:
                raise StageFailed(spec.label, result)
            ran_on = ran_on.model_copy(update={"tools": tools.result()})
            result = work.take(spec.label, space, result, stage.leaves).model_copy(update={"ran_on": ran_on})
            if _commit_outputs(spec, place.store, space, result, attempt) is Commit.DIFFERS:
                kept = differing_name(spec.key, attempt.name)
                on_note(f"warning: another node committed {spec.label} with other bytes; this result is kept as {kept}")
        except BaseException as error:
            if stage.row.resumable and not isinstance(error, ResultRefused):
                work.leave(space)
            else:
                work.discard(space)
            raise
    remove_tree(place.scratch / _WORK / "quantyard" / stage.row.name / spec.key[:12])
    return result


def _stage_of_node_spec(spec: NodeSpec) -> StageSpec:
    """The stage, as engines take it.

    Raises:
        BadRequest: this version of Quantyard has no such stage, or its request has other fields.
    """
    try:
        row, request = STAGES[spec.stage], parse_stage_request(spec.stage, spec.request)
    except (KeyError, ValueError) as error:
        message = f"{spec.label}: this version of Quantyard does not know such a stage: {str(error).splitlines()[0]}."
        raise BadRequest(message, _SAME_VERSION) from error
    return StageSpec(spec.label, row, request, {name: given.digest for name, given in spec.inputs.items()}, spec.key)


def _check_node_tools(spec: NodeSpec, stage: StageSpec, place: NodePlace, engine: Engine) -> None:
    """The key says which code and tools make the result, so a node with others must not commit under it.

    Raises:
        EngineError: this node has others.
    """
    if stage.row.pinned:
        return
    if (code := engine_code_version(place.repo_dir, stage.row.code)) != spec.code:
        message = f"{place.host} has stages of another version: {code[:12]}, and {spec.code[:12]} was planned with."
        raise EngineError(message, f"Install the same version there ({place.repo_dir}), or share one folder.")
    if (found := place.tools_identity(engine, stage.row.image)) != spec.image:
        message = f"{place.host} has other tools than were planned with: {found or 'none'}, and not {spec.image}."
        raise EngineError(message, f"Set them up there: make images ENGINE={spec.engine}; or share one folder.")


def _commit_outputs(
    spec: NodeSpec, store: ObjectStore, space: Workspace, result: StageResult, attempt: Attempt
) -> Commit:
    for entry in result.outputs:
        put_content(store, space.kept_dir / FILES / entry.path, entry.sha256 or "")
    record = CommittedResult(
        key=spec.key, label=spec.label, result=result, attempt=attempt.name, ended_at=datetime.now(UTC),
    )
    return commit_result(store, record)


def _node_end(job: str, spec: NodeSpec, ran_on: RanOn, error: QuantyardError) -> NodeEnd:
    """What the waiting machine must know of an error."""
    if isinstance(error, StageFailed):
        return NodeEnd(job=job, node=ran_on, result=error.result)
    told = StageError(kind=error.kind, message=error.message, hint=error.hint, detail=error.detail)
    if error.code not in _STAGE_CODES:
        return NodeEnd(job=job, node=ran_on, error=told)
    return NodeEnd(
        job=job, node=ran_on, result=StageResult(stage=spec.stage, exit_code=ExitCode(error.code), error=told)
    )
