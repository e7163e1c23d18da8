"""What an engine offers to its stages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantyard.engines import docker_engine
from quantyard.engines.capacity import engine_machine_capacity
from quantyard.engines.local import LocalEngine
from quantyard.hardware import machine
from quantyard.hardware.machine import cpu_name, gpu_name, machine_memory_bytes
from quantyard.requests import ImageSettings, RunEnvironment


def test_a_stage_of_this_machine_may_take_all_of_its_memory_or_as_much_as_was_set(tmp_path: Path) -> None:
    assert LocalEngine(RunEnvironment(tmp_path)).capacity().memory_bytes == machine_memory_bytes()
    assert LocalEngine(RunEnvironment(tmp_path, memory_bytes=2**30)).capacity().memory_bytes == 2**30


def test_the_machine_of_the_local_engine_has_the_name_that_earlier_manifests_record(tmp_path: Path) -> None:
    assert LocalEngine(RunEnvironment(tmp_path)).capacity().machine == f"{cpu_name()}, {os.cpu_count()} cores"


class _Daemon:
    """Answers as a daemon with 8 CPUs and 16 GiB does."""

    asked = 0

    def info(self) -> dict[str, int]:
        self.asked += 1
        return {"NCPU": 8, "MemTotal": 16 * 2**30}


def test_a_container_may_take_the_memory_of_the_daemon_but_a_reserve_and_the_daemon_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, images = _Daemon(), ImageSettings({}, None, {})
    monkeypatch.setattr(docker_engine, "find_docker_daemon", lambda: daemon)
    engine = docker_engine.DockerEngine(RunEnvironment(tmp_path), images)
    found = engine.capacity()
    assert (found.cpus, found.memory_bytes, found.concurrent_stages, found.gpu) == (8, 31 * 2**29, 4, "")
    assert engine.capacity() == found and daemon.asked == 1
    limited = docker_engine.DockerEngine(RunEnvironment(tmp_path, memory_bytes=2**30), images)
    assert limited.capacity().memory_bytes == 2**30


def test_one_machine_runs_as_many_stages_as_it_has_cpus_and_four_at_most() -> None:
    assert [engine_machine_capacity("", cpus, 1).concurrent_stages for cpus in (1, 2, 64)] == [1, 2, 4]


def test_the_gpu_is_called_what_its_driver_calls_it(tmp_path: Path) -> None:
    assert gpu_name(tmp_path) == ""
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 158\n")
    assert gpu_name(tmp_path) == "NVIDIA H200"


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    assert machine._container_memory_limit(limit) == 2**30
    limit.write_text("max\n")
    assert machine._container_memory_limit(limit) == machine_memory_bytes()
    assert machine._container_memory_limit(tmp_path / "none") == machine_memory_bytes()


@pytest.mark.parametrize(("text", "cpus"), [("800000 100000\n", 8), ("150000 100000", 2), ("5000 100000", 1)])
def test_a_container_has_threads_for_the_cpu_time_that_it_may_use(
    text: str, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(text)
    assert machine._container_cpu_limit(limit) == cpus
    monkeypatch.setattr(machine, "_container_cpu_limit", lambda: 1)
    assert machine.physical_cores() == 1


@pytest.mark.parametrize("text", ["max 100000\n", "", "0 0"])
def test_without_a_limit_of_cpu_time_all_cores_count(text: str, tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(text)
    assert machine._container_cpu_limit(limit) > 10**6 and machine._container_cpu_limit(tmp_path / "none") > 10**6
