"""A run asks its shared store and its queue seldom, whatever the number of stages and however long they take."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from quantyard.batch import JobStatus
from quantyard.batch.asking_pace import AskingPace
from quantyard.batch.job_watch import JobWatch
from quantyard.shared_store.commits import RESULTS
from quantyard.shared_store.posix_objects import PosixObjects
from tests.unit.test_batch_engine import HereQueue, a_cluster, a_spec


class Clock:
    """A clock that stands until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_questions_are_frequent_at_first_and_rare_after_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("quantyard.batch.asking_pace.time.monotonic", clock.monotonic)
    pace, asked = AskingPace(0.2, 10.0), list[float]()
    for step in range(8 * 3600):
        clock.now = 1000.0 + step / 8
        if pace.is_due():
            asked.append(step / 8)
    assert len([at for at in asked if at < 3]) > 10 and len(asked) < 500
    waits = [later - at for at, later in itertools.pairwise(asked)]
    late = [wait for at, wait in zip(asked, waits, strict=False) if wait > max(0.25, 0.06 * at) + 0.25]
    assert max(waits) <= 10.25 and not late


def test_a_stage_that_runs_for_minutes_asks_the_store_rarely_and_hears_its_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by half a second at each look at the queue; the job runs for ten minutes of it."""
    clock, asked = Clock(), Counter[str]()
    cluster = a_cluster(tmp_path)
    read = PosixObjects.read_bytes

    def counted(store: PosixObjects, name: str) -> bytes:
        asked[name.partition("/")[0] + "/"] += 1
        return read(store, name)

    def poll(queue: HereQueue, ids: Collection[str]) -> Mapping[str, JobStatus]:
        clock.now += 0.5
        if clock.now < 1600:
            return dict.fromkeys(ids, JobStatus("running", node="node1"))
        if clock.now < 1600.5:
            queue._run(name[0], "1")
        return dict.fromkeys(ids, JobStatus("ended", exit_code=0))

    name = list[str]()
    monkeypatch.setattr("quantyard.batch.asking_pace.time.monotonic", clock.monotonic)
    monkeypatch.setattr("quantyard.batch.batch_engine._STEP_S", 0.0)
    monkeypatch.setattr(PosixObjects, "read_bytes", counted)
    monkeypatch.setattr(HereQueue, "poll", poll)
    put = cluster.engine._put_spec
    monkeypatch.setattr(cluster.engine, "_put_spec", lambda spec: name.append(put(spec)) or name[-1])
    cluster.queue.fates = [JobStatus("running")]
    result = cluster.run(a_spec())
    assert result.outputs and 20 < asked[RESULTS] < 150
    assert clock.now < 1602, "the queue said that it ended"


def test_one_question_to_the_queue_is_for_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Queue(HereQueue):
        def poll(self, ids: Collection[str]) -> Mapping[str, JobStatus]:
            questions.append(sorted(ids))
            return dict.fromkeys(ids, JobStatus("running"))

    clock, questions = Clock(), list[list[str]]()
    monkeypatch.setattr("quantyard.batch.job_watch.time.monotonic", clock.monotonic)
    watch = JobWatch(Queue(None, None))  # type: ignore[arg-type]
    for number in range(50):
        watch.add_job(str(number))
    for _ in range(60):
        clock.now += 0.1
        assert {watch.job_status(str(number)).state for number in range(50)} <= {"queued", "running"}
    assert len(questions) <= 4 and all(len(ids) == 50 for ids in questions)
