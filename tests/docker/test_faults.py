"""Faults, for real: interrupts, kills, full disks, a vanished daemon. After each, nothing half-made counts and the
next run finishes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from quantyard.engines.docker_engine import DockerEngine
from quantyard.errors import StageFailed
from quantyard.execution.runner import PlanRunner
from quantyard.files.unique_names import host_in_names
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR, read_pins
from quantyard.plan.build import BuildOptions, make_build_plan
from quantyard.protocol.exit_codes import Answer
from quantyard.quants.selection import parse_quants
from quantyard.requests import ImageSettings, RunEnvironment
from quantyard.sources.resolve import find_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.stages import ModelStore
from tests.conftest import run, run_json, start
from tests.docker.containers import stops
from tests.unit.conftest import Notes

WaitFor = Callable[[str, Path], Any]
STAGES = ["convert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("quantize", "verify"))]


def _is_clean(artifacts: Path) -> bool:
    """No file under a final name, no unfinished stage that counts."""
    half = [p for p in artifacts.rglob("stages/.*") if p.is_dir()]
    return not list(artifacts.rglob("*-Q8_0.gguf")) and not half


def _finishes(model: Path, artifacts: Path) -> bool:
    made = run_json("build", MODEL=str(model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(artifacts))
    return Path(made["files"][0]["path"]).exists()


@pytest.mark.parametrize(("how", "stage"), [
    pytest.param(signal.SIGINT, "convert", id="ctrl-c-convert"),
    pytest.param(signal.SIGINT, "quantize", id="ctrl-c-quantize", marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, "verify", id="terminated-verify", marks=pytest.mark.slow),
])  # fmt: skip
def test_an_interrupted_build_removes_its_container_and_the_next_run_finishes(
    how: signal.Signals, stage: str, tiny_model: Path, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    process = start("build", MODEL=str(tiny_model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(tmp_path))
    container = stage_container(stage, tmp_path)
    process.send_signal(how)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "type the same command" in err
    assert stops(container) and _is_clean(tmp_path)
    assert _finishes(tiny_model, tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_orchestrator_takes_its_container_with_it_and_the_next_run_finishes(
    stage: str, tiny_model: Path, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    process = start("build", MODEL=str(tiny_model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(tmp_path))
    container = stage_container(stage, tmp_path)
    process.kill()
    process.communicate(timeout=30)
    assert stops(container), "the container goes on although nobody waits for it"
    assert not list(tmp_path.rglob("*-Q8_0.gguf"))
    assert _finishes(tiny_model, tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_a_container_killed_from_outside_is_an_error_that_says_so(
    stage: str, tiny_model: Path, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    process = start("build", MODEL=str(tiny_model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(tmp_path))
    stage_container(stage, tmp_path).kill()
    _out, err = process.communicate(timeout=60)
    assert process.returncode == Answer.ENGINE, err
    assert "was killed from outside (exit code" in err and "Type the same command again" in err
    assert _is_clean(tmp_path)
    assert _finishes(tiny_model, tmp_path)


def test_memory_that_runs_out_is_exit_code_5(demo_model: Path, builder_image: str, tmp_path: Path) -> None:
    done = run("build", MODEL=str(demo_model), ENGINE="docker", ARTIFACTS=str(tmp_path), MEMORY="256MiB")
    assert done.returncode == 5, done.stderr
    assert "memory ran out" in done.stderr and "MEMORY=" in done.stderr
    assert _is_clean(tmp_path)


def test_too_little_disk_stops_the_build_before_it_starts(
    demo_model: Path, builder_image: str, small_disk: Callable[[int], Path]
) -> None:
    artifacts = small_disk(100)
    done = run("build", MODEL=str(demo_model), ENGINE="docker", ARTIFACTS=str(artifacts))
    assert done.returncode == 5
    assert "MB of disk, and" in done.stderr and "ARTIFACTS=" in done.stderr and not list(artifacts.rglob("stages"))


@pytest.mark.parametrize(("stage", "size_mib"), [
    ("convert", 5), pytest.param("quantize Q8_0", 8, marks=pytest.mark.slow),
    pytest.param("verify Q8_0", 12, marks=pytest.mark.slow),
])
def test_a_disk_that_fills_up_during_a_stage_is_exit_code_5_and_the_next_run_finishes(
    stage: str, size_mib: int, tiny_model: Path, builder_image: str, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    artifacts, notes = small_disk(size_mib), Notes()
    runner = _runner(tiny_model, artifacts)
    if stage.startswith("verify"):
        runner.engine = _Filling(runner.engine, artifacts)  # type: ignore[assignment]
    with pytest.raises((StageFailed, OSError)) as failure:
        runner.run(notes)
    code = failure.value.code if isinstance(failure.value, StageFailed) else 5
    assert code == 5, failure.value
    assert f"end {stage}" not in notes.lines and _is_clean(artifacts)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(artifacts, elsewhere, ignore=shutil.ignore_patterns("ballast"))
    assert _finishes(tiny_model, elsewhere)


class _Filling:
    """The docker engine, but the disk is full when verify starts."""

    def __init__(self, engine: Any, artifacts: Path) -> None:
        self._engine, self._artifacts = engine, artifacts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, spec: Any, space: Any, inputs: Any, on_progress: Any) -> Any:
        if spec.row.name == "verify":
            with suppress(OSError), (self._artifacts / "ballast").open("wb", buffering=0) as stream:
                while True:
                    stream.write(b"\0" * 4096)
        return self._engine.run(spec, space, inputs, on_progress)


def _runner(model: Path, artifacts: Path) -> PlanRunner:
    """A build that skips the check of the disk, so that the disk fills up under it."""
    pins = read_pins(REPO_DIR / "versions.env")
    images = ImageSettings({"builder": f"{pins['LLAMA_CPP_IMAGE']}:{pins['LLAMA_CPP_TAG']}"}, None, {})
    source = find_source(
        str(model), HubAccess(None, None), HashCache(artifacts / "hashes"), allow_pickle=False, gguf_file=None
    )
    options = BuildOptions(
        quants=parse_quants("Q8_0"), outtype="auto", allow_pickle=False, allow_requantize=False, allow_mismatch=(),
        threads=0, workers=4, endpoint=None,
    )
    engine = DockerEngine(RunEnvironment(repo_dir=REPO_DIR), images)
    return PlanRunner(make_build_plan(source, options), engine, ModelStore(artifacts, source.model), REPO_DIR)


def test_a_second_build_of_the_same_model_waits_and_then_has_nothing_to_do(
    tiny_model: Path, builder_image: str, tmp_path: Path, stage_container: WaitFor
) -> None:
    first = start("build", MODEL=str(tiny_model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(tmp_path))
    stage_container("convert", tmp_path)
    second = run("build", MODEL=str(tiny_model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(tmp_path))
    first.communicate(timeout=60)
    assert first.returncode == 0 and second.returncode == 0
    assert f"waiting: process {first.pid} on {host_in_names()} is building this model" in second.stderr
    assert "[convert]" not in second.stderr.replace("to run", "")


class _DaemonProxy:
    """A socket in front of the real daemon that can be cut."""

    def __init__(self, path: Path) -> None:
        self.path, self._open = path, True
        self._pairs: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while self._open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            daemon = socket.socket(socket.AF_UNIX)
            daemon.connect("/var/run/docker.sock")
            self._pairs += [client, daemon]
            for a, b in ((client, daemon), (daemon, client)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while block := a.recv(65536):
                b.sendall(block)
            b.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self._open = False
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def daemon_proxy(tmp_path: Path) -> Iterator[_DaemonProxy]:
    proxy = _DaemonProxy(tmp_path / "docker.sock")
    yield proxy
    proxy.cut()


def test_a_daemon_that_goes_away_is_an_error_that_says_so_and_the_next_run_finishes(
    tiny_model: Path, builder_image: str, tmp_path: Path, stage_container: WaitFor, daemon_proxy: _DaemonProxy
) -> None:
    if os.environ.get("DOCKER_HOST"):
        pytest.skip("the daemon is not at /var/run/docker.sock")
    artifacts = tmp_path / "artifacts"
    process = start(
        "build", MODEL=str(tiny_model), QUANT="Q8_0", ENGINE="docker", ARTIFACTS=str(artifacts),
        DOCKER_HOST=f"unix://{daemon_proxy.path}",
    )
    container = stage_container("convert", artifacts)
    daemon_proxy.cut()
    _out, err = process.communicate(timeout=60)
    assert process.returncode == Answer.ENGINE, err
    assert "Docker daemon failed" in err and "make doctor" in err
    assert stops(container), "the daemon closes the stage's stdin, and that ends it"
    assert _finishes(tiny_model, artifacts)


def test_no_daemon_at_all_is_an_error_with_two_remedies(tiny_model: Path, tmp_path: Path) -> None:
    done = run(
        "build", MODEL=str(tiny_model), ENGINE="docker", ARTIFACTS=str(tmp_path), DOCKER_HOST="unix:///nowhere.sock"
    )
    assert done.returncode == Answer.ENGINE
    assert "The Docker daemon does not answer" in done.stderr and "ENGINE=local" in done.stderr
