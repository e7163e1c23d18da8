"""Steps side by side: which, how many, in which order it is said, and how they end when something goes wrong."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from quantyard.engines import OnProgress
from quantyard.engines.capacity import engine_machine_capacity
from quantyard.errors import EngineError, QuantyardError, StageFailed
from quantyard.execution.live_progress import LiveReporter
from quantyard.execution.manifest_writer import placed_record
from quantyard.execution.runner import PlanRunner
from quantyard.execution.scheduler import Concurrency, InOrder, Stopwatch, concurrency_of
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, Progress, StageResult
from quantyard.sources.resolve import Source
from quantyard.store import manifest
from quantyard.store.artifact import Artifact, Workspace
from quantyard.store.manifest import read_manifest
from quantyard.store.stages import ModelStore
from tests.hostile.sampling import rounds
from tests.unit.conftest import MakeMeasured, MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine, fails, interrupted

pytestmark = pytest.mark.commands

QUANTS = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
WIDE = Concurrency(stages=4, memory_bytes=10**12)


@dataclass
class SlowEngine(FakeEngine):
    """Each stage takes its time, and can be stopped; what ran at the same time is remembered."""

    delay_s: float = 0.03
    delays_s: dict[str, float] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)  # a stage ends after that one has
    log: Path | None = None  # a line for each stage that begins, for who looks from another process
    running: set[str] = field(default_factory=set)
    together: list[frozenset[str]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        self.running.add(spec.label)
        self.together.append(frozenset(self.running))
        if self.log is not None:
            with self.log.open("a") as log:
                log.write(f"{spec.label}\n")
        try:
            if self.stopped.wait(self.delays_s.get(spec.label, self.delay_s)):
                raise EngineError(f"{spec.label} was stopped.")
            until = time.monotonic() + 60
            while (other := self.after.get(spec.label)) and other not in self.ended and time.monotonic() < until:
                time.sleep(0.005)
            return super().run(spec, space, inputs, on_progress)
        finally:
            self.running.discard(spec.label)
            self.ended.append(spec.label)


def _unfinished(store: ModelStore) -> list[str]:
    return [path.name for path in (store.folder / "stages").iterdir() if path.name.startswith(".")]


def _assert_whole(store: ModelStore) -> None:
    """All that looks finished is: each stage's files are those its result names, and the manifest can be read."""
    for folder in (store.folder / "stages").glob("[!.]*"):
        result = StageResult.model_validate_json((folder / "result.json").read_bytes())
        for entry in result.outputs:
            assert (folder / "files" / entry.path).stat().st_size == entry.size_bytes
    if (store.folder / "manifest.json").exists():
        assert read_manifest(store.folder / "manifest.json") is not None
    assert not list(store.folder.glob("*unreadable*"))


# ---- what runs at the same time ----------------------------------------------------------------------


def test_small_quants_run_side_by_side_and_what_measures_runs_alone(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = SlowEngine(delays_s={f"quantize {quant}": 0.3 for quant in QUANTS.split(",")})
    runner = measured(local_source, engine, QUANTS)
    runner.limit = WIDE
    built = runner.run(notes)
    assert [file.quant for file in built] == QUANTS.split(",")
    assert max(map(len, engine.together)) == 4
    for labels in engine.together:
        alone = {label for label in labels if label.split()[0] not in ("quantize", "verify")}
        assert not alone or len(labels) == 1, labels


@pytest.mark.parametrize("concurrency", [Concurrency(1, memory_bytes=10**12), Concurrency(4, memory_bytes=1)])
def test_large_files_are_made_one_at_a_time(
    concurrency: Concurrency, local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    engine = SlowEngine(delay_s=0.005)
    runner = make_runner(local_source, engine, QUANTS)
    runner.limit = concurrency
    runner.run(notes)
    assert {len(labels) for labels in engine.together} == {1}
    assert engine.ran == runner.ran


def test_a_file_is_verified_as_soon_as_it_is_there_and_never_before(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    engine = SlowEngine(delay_s=0.005, after={"quantize Q2_K": "verify Q8_0"})
    runner = make_runner(local_source, engine, QUANTS)
    runner.limit = Concurrency(2, 10**12)
    runner.run(notes)
    for quant in QUANTS.split(","):
        assert engine.ended.index(f"quantize {quant}") < engine.ended.index(f"verify {quant}")
    assert engine.ended.index("verify Q3_K_M") < engine.ended.index("quantize Q4_K_M")
    assert engine.ended.index("verify Q8_0") < engine.ended.index("quantize Q2_K"), "it held nothing up"


def test_room_is_for_as_many_steps_as_cores_but_a_few_at_most_and_for_half_the_memory() -> None:
    assert concurrency_of(engine_machine_capacity("", 2, 16 * 2**30)) == Concurrency(2, 8 * 2**30)
    assert concurrency_of(engine_machine_capacity("", 64, 16 * 2**30)).stages == 4
    concurrency = Concurrency(2, 100)
    assert concurrency.allows(0, 0, 1000) and concurrency.allows(1, 60, 40)
    assert not concurrency.allows(1, 60, 41) and not concurrency.allows(2, 0, 1)


# ---- the order in which it is said and kept ----------------------------------------------------------


def _outcome(runner: PlanRunner, notes: Notes) -> tuple[list[str], list[str], list[str], list[str]]:
    runner.run(notes)
    manifest = read_manifest(runner.store.folder / "manifest.json")
    assert manifest is not None
    said = [line for line in notes.lines if line.startswith("end")]
    return said, runner.ran, list(manifest.stages), list(manifest.quants)


def test_whichever_ends_first_the_lines_and_the_manifest_keep_the_plans_order(
    local_source: Source, make_runner: MakeRunner
) -> None:
    labels = ["convert", *(f"{stage} {quant}" for quant in QUANTS.split(",") for stage in ("quantize", "verify"))]
    for seed in range(3):
        rng = random.Random(seed)
        engine = SlowEngine(image=f"image-{seed}", delays_s={label: rng.random() / 20 for label in labels})
        runner = make_runner(local_source, engine, QUANTS)
        runner.limit = WIDE
        said, ran, stages, quants = _outcome(runner, Notes())
        assert said == [f"end {label}" for label in labels]
        assert (ran, stages, quants) == (labels, labels, QUANTS.split(","))


def test_a_record_takes_its_place_in_the_plan_and_leaves_the_others_where_they_are() -> None:
    order = ["convert", "quantize A", "verify A", "quantize B", "report"]
    records = {"lora": 1, "convert": 1, "quantize B": 1}
    assert list(placed_record(records, "verify A", 2, order)) == ["lora", "convert", "verify A", "quantize B"]
    assert list(placed_record(records, "report", 2, order))[-1] == "report"
    assert list(placed_record(records, "lora", 2, order)) == list(records)
    assert list(placed_record({"quantize B": 1}, "convert", 2, order)) == ["convert", "quantize B"]
    assert list(placed_record({"other": 1}, "convert", 2, order)) == ["other", "convert"]


def test_things_are_said_in_order_and_the_rest_at_the_end() -> None:
    said: list[str] = []
    order = InOrder(["a", "b", "c", "d"])
    order.put("c", lambda: said.append("c"))
    assert said == []
    order.put("a", lambda: said.append("a"))
    order.put("d", lambda: said.append("d"))
    assert said == ["a"]
    order.rest()
    assert said == ["a", "c", "d"]


def test_what_runs_at_the_same_time_shares_it_so_that_the_parts_add_up() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])
    for at, act, label in ((0, watch.begin, "a"), (4, watch.begin, "b"), (10, watch.end, "a"), (12, watch.end, "b"),
                           (20, watch.begin, "c"), (25, watch.end, "c")):  # fmt: skip
        now[0] = at
        act(label)
    assert watch.taken_s == {"a": 7, "b": 5, "c": 5}
    assert watch.concurrent == {"a", "b"}


def test_bars_show_every_stage_that_runs_each_with_its_own_progress() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    reporter = LiveReporter(console)
    reporter.begin("quantize Q4_K_M", 2, 5)
    reporter.begin("quantize Q8_0", 4, 5)
    reporter.progress("quantize Q8_0", Progress(stage="quantize", done=30, total=272, unit="tensors"))
    reporter.progress("quantize Q4_K_M", Progress(stage="quantize", done=99, total=272, unit="tensors"))
    reporter.progress("quantize Q6_K", Progress(stage="quantize", done=1, total=272, unit="tensors"))
    assert _shown(reporter) == {"stages": 2, "quantize Q4_K_M": 99, "quantize Q8_0": 30}
    reporter.fail("quantize Q8_0", "[quantize Q8_0] failed: no")
    reporter.end("quantize Q4_K_M", StageResult(stage="quantize", exit_code=ExitCode.DONE))
    assert _shown(reporter) == {"stages": 4}


def _shown(reporter: LiveReporter) -> dict[str, float]:
    done = {label: step.last.done if step.last else 0 for label, step in reporter.steps.running.items()}
    return {"stages": reporter.steps.n_ended, **done}


# ---- failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 4])
def test_a_quant_that_fails_leaves_the_others_alone_if_that_is_wanted(
    stages: int, local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    broken = {"quantize Q3_K_M": fails(ExitCode.RESOURCES), "verify Q6_K": fails(ExitCode.UNSUPPORTED_MODEL)}
    runner = measured(local_source, SlowEngine(behaviours=broken), QUANTS)
    runner.limit, runner.keep_going = Concurrency(stages, 10**12), True
    built = runner.run(notes)
    assert [file.quant for file in built] == ["Q2_K", "Q4_K_M", "Q5_K_M", "Q8_0"]
    assert list(runner.failures) == ["quantize Q3_K_M", "verify Q6_K"]
    failed = [line for line in notes.lines if "failed" in line]
    assert [line.split("]")[0] for line in failed] == ["[quantize Q3_K_M", "[verify Q6_K"]
    assert runner.measured is not None and len(runner.measured.report.measurements) == 5
    assert _unfinished(runner.store) == []
    _assert_whole(runner.store)


def test_otherwise_what_runs_is_kept_nothing_more_is_begun_and_the_plans_first_failure_is_raised(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    broken = {"quantize Q2_K": fails(ExitCode.RESOURCES), "quantize Q3_K_M": fails(ExitCode.UNSUPPORTED_MODEL)}
    engine = SlowEngine(behaviours=broken, delays_s={"quantize Q2_K": 0.2, "quantize Q4_K_M": 0.4})
    runner = make_runner(local_source, engine, QUANTS)
    runner.limit = Concurrency(3, 10**12)
    with pytest.raises(StageFailed) as caught:
        runner.run(notes)
    assert caught.value.code == ExitCode.RESOURCES, "Q3_K_M failed before it, and comes after it"
    assert set(engine.ended) == {"convert", "quantize Q2_K", "quantize Q3_K_M", "quantize Q4_K_M"}
    assert _unfinished(runner.store) == []
    again = make_runner(local_source, engine := SlowEngine(), QUANTS)
    again.run(notes)
    assert "quantize Q4_K_M" not in engine.ran and "convert" not in engine.ran


def test_an_engine_that_fails_under_one_stage_ends_the_build_with_its_error(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    def daemon_gone(spec: StageSpec, space: Workspace) -> StageResult:
        raise EngineError("The daemon is gone.")

    runner = make_runner(local_source, SlowEngine(behaviours={"verify Q4_K_M": daemon_gone}), QUANTS)
    runner.limit = WIDE
    with pytest.raises(EngineError, match="daemon is gone"):
        runner.run(notes)
    assert _unfinished(runner.store) == []


# ---- stopped -----------------------------------------------------------------------------------------


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """A shell that starts the tests in the background has made them deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_every_stage_that_runs_and_leaves_nothing_half(
    local_source: Source, make_runner: MakeRunner, notes: Notes, hears_ctrl_c: None
) -> None:
    engine = SlowEngine(delays_s={f"quantize {quant}": 60 for quant in QUANTS.split(",")})
    runner = make_runner(local_source, engine, QUANTS)
    runner.limit = WIDE
    began = time.monotonic()
    press = threading.Thread(target=_press_when(lambda: len(engine.running) == 4))
    press.start()
    with pytest.raises(KeyboardInterrupt):
        runner.run(notes)
    press.join()
    assert time.monotonic() - began < 20
    assert engine.running == set() and len(engine.ended) == 5, "convert, and four that were stopped"
    assert _unfinished(runner.store) == []
    _assert_whole(runner.store)
    make_runner(local_source, SlowEngine(delay_s=0), QUANTS).run(notes)


def _press_when(ready: Callable[[], bool]) -> Callable[[], None]:
    """As a user does: again where the first time met something that swallows it, such as a destructor."""

    def press() -> None:
        while not ready():
            time.sleep(0.01)
        while ready():
            os.kill(os.getpid(), signal.SIGINT)
            until = time.monotonic() + 5
            while ready() and time.monotonic() < until:
                time.sleep(0.01)

    return press


def test_an_interrupt_that_one_stage_passes_on_stops_the_others(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    slow = {f"quantize {quant}": 60.0 for quant in QUANTS.split(",")} | {"quantize Q3_K_M": 0.05}
    engine = SlowEngine(behaviours={"quantize Q3_K_M": interrupted}, delays_s=slow)
    runner = make_runner(local_source, engine, QUANTS)
    runner.limit = WIDE
    with pytest.raises(KeyboardInterrupt):
        runner.run(notes)
    assert engine.running == set() and _unfinished(runner.store) == []


def test_a_stage_that_was_finished_but_not_yet_recorded_is_recorded_by_the_next_run(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    runner = make_runner(local_source, FakeEngine(), QUANTS)
    runner.run(notes)
    path = runner.store.folder / "manifest.json"
    whole = json.loads(path.read_text())
    cut = whole | {"stages": {label: s for label, s in whole["stages"].items() if label != "verify Q4_K_M"}}
    path.write_text(json.dumps(cut))
    make_runner(local_source, engine := FakeEngine(), QUANTS).run(notes)
    assert engine.ran == []
    assert list(json.loads(path.read_text())["stages"]) == list(whole["stages"])


def test_killed_many_times_the_store_is_never_corrupt_and_no_finished_stage_runs_again(
    local_source: Source, measured: MakeMeasured, notes: Notes, tmp_path: Path
) -> None:
    log, rng, stages, n_kills = tmp_path / "log", random.Random(6), 3, rounds(6, 20)
    log.touch()

    def run() -> None:
        engine = SlowEngine(delay_s=0.08, log=log)
        runner = measured(local_source, engine, QUANTS)
        runner.limit = Concurrency(stages, 10**12)
        runner.run(Notes())

    store = measured(local_source, FakeEngine(), QUANTS).store
    fork, n_killed = multiprocessing.get_context("fork"), 0
    for _ in range(n_kills):
        process = fork.Process(target=run)
        process.start()
        process.join(rng.uniform(0.05, 0.25))
        n_killed += process.is_alive()
        process.kill()
        process.join()
        if (store.folder / "stages").exists():
            _assert_whole(store)
    runner = measured(local_source, SlowEngine(delay_s=0, log=log), QUANTS)
    built = runner.run(notes)
    manifest = read_manifest(store.folder / "manifest.json")
    assert [file.quant for file in built] == QUANTS.split(",") and manifest is not None
    plain = {step.label for step in runner.plan.steps if step.row.name != "divergence"}
    assert plain <= set(manifest.stages)
    begun = log.read_text().splitlines()
    n_again = len(begun) - len(set(begun))
    assert n_killed >= n_kills // 2, "most of them hit a run"
    assert n_again <= stages * n_killed, "a kill costs what ran at that moment"
    assert list((store.folder / "stages").glob(".*/out")) == [], "nothing stays that no run will go on from"


def test_a_disk_that_fails_under_the_manifest_stops_the_others_too(
    local_source: Source, make_runner: MakeRunner, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SlowEngine(delays_s={f"quantize {quant}": 60 for quant in QUANTS.split(",")} | {"quantize Q3_K_M": 0})
    runner = make_runner(local_source, engine, QUANTS)
    runner.limit = WIDE
    write = manifest.write_file_atomically

    def full(path: Path, content: bytes) -> None:
        if b"quantize Q3_K_M" in content:
            raise QuantyardError("The disk is full.")
        write(path, content)

    monkeypatch.setattr(manifest, "write_file_atomically", full)
    with pytest.raises(QuantyardError, match="disk is full"):
        runner.run(notes)
    assert engine.running == set() and _unfinished(runner.store) == []
