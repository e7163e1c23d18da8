"""The queue `slurm`: stages as jobs, through sbatch, squeue and scancel.

Slurm itself starts a job again when its node is lost (`--requeue`). A job is found by its key, so a machine that plans
may die at any time, and the next one waits for the same job.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from quantyard.batch import LOG_TAIL_BYTES, LOG_TAIL_LINES, Fate, JobStatus, SubmittedJob
from quantyard.batch.slurm_commands import run_slurm_command
from quantyard.batch.slurm_job import (
    SlurmPlace,
    parse_slurm_comment,
    sbatch_options,
    slurm_job_name,
    slurm_job_script,
    slurm_log_pattern,
)
from quantyard.batch.submitters import is_submitter_alive_elsewhere, submitter_name
from quantyard.engines.capacity import Capacity
from quantyard.errors import EngineError
from quantyard.protocol.node_spec import NodeSpec
from quantyard.requests import ClusterRequest

_MIB: Final = 2**20
_CANCEL_S: Final = 4.0
_POLL_S: Final = 15.0
_MOST_JOBS: Final = 64  # of one run in the queue at a time
_QUEUED: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
_RUNNING: Final = frozenset({"RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"})
_FATES: Final[Mapping[str, Fate]] = {
    "NODE_FAIL": "node", "BOOT_FAIL": "node", "LAUNCH_FAILED": "node", "RECONFIG_FAIL": "node", "TIMEOUT": "time",
    "DEADLINE": "time", "OUT_OF_MEMORY": "memory", "CANCELLED": "cancelled", "REVOKED": "cancelled",
    "PREEMPTED": "preempted",
}  # fmt: skip
_FORMAT: Final = "%i|%T|%r|%N|%k"
_EXIT_CODE: Final = re.compile(r"\bExitCode=(\d+):(\d+)")
_DURATION: Final = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True)
class _Nodes:
    """The nodes of the partition that jobs may run on."""

    partition: str
    count: int
    cpus: int  # of the smallest
    memory_bytes: int  # of the smallest
    most_s: float | None  # the longest job


class SlurmQueue:
    """The jobs of this user in Slurm."""

    name = "slurm"

    def __init__(self, cluster: ClusterRequest, place: SlurmPlace) -> None:
        self._cluster, self._place = cluster, place
        self._submitter = submitter_name(os.getpid())

    def capacity(self) -> Capacity:
        """See BatchQueue. The nodes of a partition count as one kind of machine, that of its smallest node."""
        nodes = self._nodes
        cpus = min(self._cluster.cpus or nodes.cpus, nodes.cpus)
        kind = " ".join(filter(None, ("slurm", nodes.partition, self._cluster.constraint)))
        jobs = min(nodes.count * max(1, nodes.cpus // cpus), _MOST_JOBS)
        return Capacity(kind, cpus, nodes.memory_bytes, jobs, nodes=jobs)

    @cached_property
    def _nodes(self) -> _Nodes:
        wanted = [f"--partition={self._cluster.partition}"] if self._cluster.partition else []
        said = run_slurm_command("sinfo", "--noheader", "--format=%P|%D|%c|%m|%l|%T", *wanted)
        return _parse_sinfo(said, self._cluster.partition)

    def submit(self, spec: NodeSpec, spec_name: str, avoid: Collection[str] = ()) -> SubmittedJob:
        """See BatchQueue."""
        if found := self._job_of_key(spec):
            return found
        self._place.logs.mkdir(parents=True, exist_ok=True)
        options = sbatch_options(spec, self._cluster, self._place, self._submitter, avoid, self._nodes.most_s)
        script = slurm_job_script(spec, spec_name, self._cluster, self._place)
        try:
            said = run_slurm_command("sbatch", *options, given=script)
        except KeyboardInterrupt:  # it may have been submitted
            if (found := self._job_of_key(spec)) is not None and found.ours:
                self.cancel([found.id])
            raise
        return SubmittedJob(said.strip().splitlines()[-1].partition(";")[0], ours=True)

    def poll(self, ids: Collection[str]) -> Mapping[str, JobStatus]:
        """See BatchQueue."""
        rows = self._rows("--states=all")
        found = {row[0]: self._with_exit_code(row[0], _status_of_row(row)) for row in rows if row[0] in ids}
        return {job_id: found.get(job_id, JobStatus("lost")) for job_id in ids}

    def cancel(self, ids: Collection[str]) -> None:
        """See BatchQueue."""
        if ids:
            with suppress(EngineError):
                run_slurm_command("scancel", *sorted(ids), timeout_s=_CANCEL_S)

    def log_tail(self, job_id: str, spec: NodeSpec) -> str:
        """See BatchQueue."""
        with suppress(OSError):
            text = slurm_log_pattern(self._place.logs, spec, job_id).read_bytes()[-LOG_TAIL_BYTES:]
            return "\n".join(text.decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        return ""

    def _with_exit_code(self, job_id: str, status: JobStatus) -> JobStatus:
        """The status of a job that ended by itself, with its exit code; as a shell's where a signal ended it."""
        if status.state != "ended" or status.fate:
            return status
        with suppress(EngineError):
            said = run_slurm_command("scontrol", "--oneliner", "show", "job", job_id)
            if found := _EXIT_CODE.search(said):
                code, signal = int(found[1]), int(found[2])
                return replace(status, exit_code=128 + signal if signal else code)
        return status

    def _job_of_key(self, spec: NodeSpec) -> SubmittedJob | None:
        for row in self._rows(f"--name={slurm_job_name(spec)}"):
            told = parse_slurm_comment(row[4])
            if told is not None and told[0] == spec.key and _status_of_row(row).state in ("queued", "running"):
                return SubmittedJob(row[0], ours=not is_submitter_alive_elsewhere(told[1], self._submitter))
        return None

    def _rows(self, *options: str) -> list[list[str]]:
        """Jobs of this user: id, state, reason, nodes, comment."""
        argv = ("squeue", "--noheader", f"--user={os.getuid()}", f"--format={_FORMAT}", *options)
        said = run_slurm_command(*argv, timeout_s=_POLL_S)
        rows = (line.split("|", 4) for line in said.splitlines())
        return [row for row in rows if len(row) == 5]


def _status_of_row(row: list[str]) -> JobStatus:
    _, state, reason, node, _ = row
    if state in _QUEUED:
        return JobStatus("queued", reason=reason)
    if state in _RUNNING or state == "COMPLETING":
        return JobStatus("running", node=node)
    return JobStatus("ended", reason=reason, node=node, fate=_FATES.get(state, ""))


def _parse_sinfo(said: str, wanted: str) -> _Nodes:
    """The nodes of the wanted partition, or of the default one (marked with `*`).

    Raises:
        EngineError: it has none that can take a job.
    """
    rows = [row for line in said.splitlines() if len(row := line.strip().split("|")) == 6]
    mine = [row for row in rows if (row[0].rstrip("*") == wanted if wanted else row[0].endswith("*"))]
    usable = [row for row in mine if row[5].rstrip("*~#!%$@^-") not in ("down", "drained", "draining", "fail", "inval")]
    if not usable:
        states = ", ".join(sorted({f"{row[1]} {row[5]}" for row in mine})) or "none"
        name = wanted or "the default one"
        message = f"The partition {name} has no node that takes jobs ({states})."
        raise EngineError(message, "See why: sinfo -R; or name another: SLURM_PARTITION=name")
    return _Nodes(
        partition=usable[0][0].rstrip("*"), count=sum(int(row[1]) for row in usable),
        cpus=min(_leading_number(row[2]) for row in usable),
        memory_bytes=min(_leading_number(row[3]) for row in usable) * _MIB, most_s=_parse_duration(usable[0][4]),
    )


def _leading_number(text: str) -> int:
    """A number with or without a plus, which says that some nodes have more."""
    return int(re.match(r"\d+", text.strip())[0])  # type: ignore[index]


def _parse_duration(text: str) -> float | None:
    """Seconds of `days-hours:minutes:seconds`; None if there is no limit."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
