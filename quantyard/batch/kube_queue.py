"""The queue `kubernetes`: stages as Jobs of one namespace.

A Job's name follows from the stage's key, so that two machines that plan submit it once: the second attaches. Its id is
the name and the uid, since a stage that is tried again has a new Job of the same name.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final

from quantyard.batch import LOG_TAIL_BYTES, LOG_TAIL_LINES, JobStatus, SubmittedJob
from quantyard.batch.errors import KubeRefused, QueueSilent
from quantyard.batch.kube_api import KubeApi, open_kube_api
from quantyard.batch.kube_job import GRACE_S, KEEP_S, KEY, MANAGED_BY, SUBMITTER, KubePlace, Manifest, kube_stage_job
from quantyard.batch.kube_network import kube_network_policies
from quantyard.batch.kube_nodes import kube_capacity
from quantyard.batch.kube_status import KubeStatus, is_kube_job_finished, kube_job_status
from quantyard.batch.submitters import is_submitter_alive_elsewhere, submitter_name
from quantyard.engines.capacity import Capacity
from quantyard.errors import EngineError
from quantyard.protocol.node_spec import NodeSpec
from quantyard.requests import KubeRequest

_OURS: Final = f"{MANAGED_BY}=quantyard"
_CONTROLLER: Final = "batch.kubernetes.io/controller-uid"
_PATIENCE_S: Final = {"image": 300.0, "node": GRACE_S + 60.0}
_GONE_S: Final = 60.0
_STEP_S: Final = 0.5
_SUBMIT_S: Final = 30.0  # of an API that does not answer, or has too much to do
_CANCEL_S: Final = (2.0, 4.0)  # to connect, to answer


class KubeQueue:
    """Our Jobs in a namespace of Kubernetes."""

    name = "kubernetes"

    def __init__(self, kube: KubeRequest, place: KubePlace) -> None:
        self._kube, self._place = kube, place
        self._submitter = submitter_name(os.getpid())
        self._lock = threading.Lock()
        self._alive_at: dict[str, float] = {}  # by id, when a poll saw it unfinished
        self._waits_since: dict[tuple[str, str], float] = {}  # by id and kind of KubeStatus.waits
        self._given_up: set[str] = set()  # uids
        self._closed = False  # whether the network policies are there

    @cached_property
    def api(self) -> KubeApi:
        """The API; BadRequest if it cannot be used."""
        return open_kube_api(self._kube)

    @cached_property
    def _capacity(self) -> Capacity:
        return kube_capacity(self.api, self._kube)

    def capacity(self) -> Capacity:
        """See BatchQueue."""
        return self._capacity

    def submit(self, spec: NodeSpec, spec_name: str, avoid: Collection[str] = ()) -> SubmittedJob:
        """See BatchQueue."""
        self.close_network()
        job = kube_stage_job(spec, spec_name, self._kube, self._place, self._submitter, avoid)
        try:
            return self._submitted(job)
        except KeyboardInterrupt:  # it may have been submitted
            if (found := self._job_there(job)) is not None and self._is_ours(found):
                self.cancel([_job_id(found)])
            raise

    def _submitted(self, job: Manifest) -> SubmittedJob:
        until, silent_until = time.monotonic() + _GONE_S, time.monotonic() + _SUBMIT_S
        while True:
            try:
                made = self.api.batch("create_namespaced_job", self.api.namespace, job)
                return SubmittedJob(_job_id(made), ours=True)
            except QueueSilent:  # whether it was submitted or not, it is safe to do it again
                if time.monotonic() > silent_until:
                    raise
                time.sleep(_STEP_S)
                continue
            except KubeRefused as error:
                if error.status != HTTPStatus.CONFLICT:
                    raise
            if (found := self._job_there(job)) is None:
                continue
            if not is_kube_job_finished(found) and found["metadata"]["uid"] not in self._given_up:
                self._check_same_stage(found, job)
                return SubmittedJob(_job_id(found), ours=self._is_ours(found))
            if not found["metadata"].get("deletionTimestamp"):
                self._delete(found["metadata"]["name"], found["metadata"]["uid"])
            if time.monotonic() > until:
                name = found["metadata"]["name"]
                message = f"The Job {name} of an earlier try is being deleted, and does not go."
                raise EngineError(message, f"See why: kubectl get job {name} -o yaml (its finalizers)")
            time.sleep(_STEP_S)

    def poll(self, ids: Collection[str]) -> Mapping[str, JobStatus]:
        """See BatchQueue."""
        if not ids:
            return {}
        jobs = {_job_id(job): job for job in self._list("list_namespaced_job", self.api.batch)}
        pods: dict[str, list[Any]] = defaultdict(list)
        for pod in self._list("list_namespaced_pod", self.api.core):
            pods[pod["metadata"].get("labels", {}).get(_CONTROLLER, "")].append(pod)
        with self._lock:
            return {name: self._status(name, jobs.get(name), pods[_uid(name)]) for name in ids}

    def cancel(self, ids: Collection[str]) -> None:
        """See BatchQueue."""
        for job_id in ids:
            with suppress(EngineError):
                self._delete(job_id.partition("/")[0], _uid(job_id))

    def log_tail(self, job_id: str, spec: NodeSpec) -> str:
        """See BatchQueue."""
        del spec
        return self.log_of(job_id)

    def log_of(self, job_id: str) -> str:
        """The last lines of a Job's newest pod; "" where there are none."""
        with suppress(EngineError):
            chosen = f"{_CONTROLLER}={_uid(job_id)}"
            pods = self.api.core("list_namespaced_pod", self.api.namespace, label_selector=chosen)["items"]
            newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)
            if newest is not None:
                return self.api.log(newest["metadata"]["name"], LOG_TAIL_LINES, LOG_TAIL_BYTES).strip()
        return ""

    def close_network(self) -> None:
        """Have the policies in the namespace that keep the network from pods, once.

        Raises:
            EngineError: they cannot be made, so pods would have a network that they must not have.
        """
        with self._lock:
            if self._closed:
                return
            for policy in kube_network_policies(self._kube, self._place):
                self._apply_policy(policy)
            self._closed = True

    def _apply_policy(self, policy: Manifest) -> None:
        name, there = policy["metadata"]["name"], None
        try:
            there = self.api.networking("read_namespaced_network_policy", name, self.api.namespace)
        except KubeRefused as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
                raise
        if there is None:
            with _conflict_ignored():
                self.api.networking("create_namespaced_network_policy", self.api.namespace, policy)
        elif there["spec"] != policy["spec"]:
            self.api.networking("replace_namespaced_network_policy", name, self.api.namespace, policy)

    def _status(self, job_id: str, job: Any | None, pods: list[Any]) -> JobStatus:
        if job is None:
            return self._status_of_gone(job_id)
        found = kube_job_status(job, pods)
        if found.job.state in ("queued", "running"):
            self._alive_at[job_id] = time.monotonic()
        return self._impatient(job_id, found)

    def _status_of_gone(self, job_id: str) -> JobStatus:
        """An ended Job stays for an hour, so one that was unfinished a short while ago was deleted by somebody."""
        seen = self._alive_at.get(job_id)
        if seen is not None and time.monotonic() - seen < KEEP_S / 2:
            return JobStatus("ended", fate="cancelled")
        return JobStatus("lost")

    def _impatient(self, job_id: str, found: KubeStatus) -> JobStatus:
        """The status, or an end where it waits too long for what may never come."""
        for kind in _PATIENCE_S:
            if kind != found.waits:
                self._waits_since.pop((job_id, kind), None)
        if not found.waits:
            return found.job
        since = self._waits_since.setdefault((job_id, found.waits), time.monotonic())
        if time.monotonic() - since < _PATIENCE_S[found.waits]:
            return found.job
        if found.waits == "image":
            return JobStatus("ended", reason=found.job.reason, fate="refused", hint=found.job.hint)
        self._given_up.add(_uid(job_id))  # its node no longer answers, so that its pod cannot end
        return JobStatus("lost", node=found.job.node)

    def _list(self, verb: str, group: Any) -> list[Any]:
        return list(group(verb, self.api.namespace, label_selector=_OURS)["items"])

    def _job_there(self, job: Manifest) -> Any | None:
        try:
            return self.api.batch("read_namespaced_job", job["metadata"]["name"], self.api.namespace)
        except KubeRefused as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def _check_same_stage(self, found: Any, job: Manifest) -> None:
        theirs = found["metadata"].get("annotations", {}).get(KEY)
        if theirs != job["metadata"]["annotations"][KEY]:
            name = found["metadata"]["name"]
            message = f"There is a Job {name} in {self.api.namespace} that is not of this stage."
            raise EngineError(message, f"Look at it, and delete it: kubectl delete job {name}")

    def _is_ours(self, job: Any) -> bool:
        submitter = job["metadata"].get("annotations", {}).get(SUBMITTER, "")
        return not is_submitter_alive_elsewhere(submitter, self._submitter)

    def _delete(self, name: str, uid: str) -> None:
        """Delete a Job and its pods, unless another Job has its name by now."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with _conflict_ignored(HTTPStatus.NOT_FOUND):
            self.api.batch("delete_namespaced_job", name, self.api.namespace, body=body, _request_timeout=_CANCEL_S)


@contextmanager
def _conflict_ignored(*also: int) -> Iterator[None]:
    """Leaves aside that another one was first; with more codes, also those."""
    try:
        yield
    except KubeRefused as error:
        if error.status not in (HTTPStatus.CONFLICT, *also):
            raise


def _job_id(job: Any) -> str:
    return f"{job['metadata']['name']}/{job['metadata']['uid']}"


def _uid(job_id: str) -> str:
    return job_id.partition("/")[2]
