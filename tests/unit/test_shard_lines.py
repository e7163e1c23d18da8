"""A stage in shards is one line for people, in the plan, while it runs and at its end; JSON keeps every shard."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from quantyard.cli.json_outputs.building import plan_output
from quantyard.cli.render.build import terminal_plan
from quantyard.execution.scheduler import Concurrency
from quantyard.execution.shard_reporter import ShardReporter
from quantyard.forecast.cost import forecast_cost
from quantyard.forecast.expected_times import Forecast, StepTime
from quantyard.plan.shards import SHARDED_STAGES, default_shards, plan_in_shards, plan_steps_in_shards
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, Step
from quantyard.protocol.base import ExitCode, Progress, StageResult
from quantyard.protocol.builder import CalibrateRequest
from quantyard.protocol.evaluation import DivergenceRequest, DivergenceSettings, DomainSettings, DomainsRequest
from quantyard.protocol.stage_requests import stage_request_types
from quantyard.sources.resolve import Source
from quantyard.workflows.results import Planned
from tests.unit.conftest import MakeMeasured
from tests.unit.fake_engine import FakeEngine, fails

SHARDS = [f"evaluate Q4_K_M shard {index} of 2" for index in (1, 2)]


@dataclass
class Told:
    """A reporter that keeps what it is told."""

    events: list[str] = field(default_factory=list)
    last: Progress | None = None

    def begin(self, label: str, number: int, of: int) -> None:
        self.events.append(f"begin {label} {number}/{of}")

    def progress(self, label: str, progress: Progress) -> None:
        self.last = progress

    def end(self, label: str, result: StageResult) -> None:
        self.events.append(f"end {label} {result.duration_s:g}")

    def fail(self, label: str, text: str) -> None:
        self.events.append(f"fail {label}: {text}")

    def note(self, text: str) -> None:
        self.events.append(text)


@pytest.fixture
def plan(local_source: Source, measured: MakeMeasured) -> BuildPlan:
    """Of a file and its baseline, measured in two shards."""
    return plan_in_shards(measured(local_source, FakeEngine()).plan, (), 2)


def _planned(plan: BuildPlan, folder: Path, finished: frozenset[str] = frozenset(), engine: str = "slurm") -> Planned:
    time = Forecast({step.label: StepTime(100.0 if step.whole else 4.0, rough=False) for step in plan.steps})
    return Planned(plan, finished, forecast_cost(plan, finished, 0, folder, time), engine, "", folder)


def test_the_plan_has_a_line_for_all_shards_and_json_has_each(plan: BuildPlan, tmp_path: Path) -> None:
    planned = _planned(plan, tmp_path)
    (line,) = [line for line in terminal_plan(planned).splitlines() if "evaluate Q4_K_M" in line]
    assert "evaluate Q4_K_M, 2 shards, each 2 min" in line
    labels = [stage.label for stage in plan_output(planned).stages]
    assert {*SHARDS, "evaluate Q4_K_M"} <= {*labels}
    begun = terminal_plan(_planned(plan, tmp_path, frozenset(SHARDS[:1])))
    assert "evaluate Q4_K_M, 2 shards (1 of them done), each 2 min" in begun


def test_what_a_line_is_expected_to_take_knows_whether_shards_run_at_once(plan: BuildPlan, tmp_path: Path) -> None:
    assert _planned(plan, tmp_path).expected_s["evaluate Q4_K_M, 2 shards"] == 104
    here = _planned(plan, tmp_path, engine="local").expected_s
    assert here["evaluate Q4_K_M, 2 shards"] == 204
    assert here["convert"] == 4 and not {*SHARDS} & {*here}


def test_shards_are_told_as_one_stage(plan: BuildPlan) -> None:
    clock, told = iter([10.0, 75.0]), Told()
    reporter = ShardReporter(plan.steps, (), told, lambda: next(clock))
    labels = [step.label for step in plan.steps]
    result = StageResult(stage="evaluate", exit_code=ExitCode.DONE, duration_s=1, outputs=(), facts={})
    for label, done in zip(SHARDS, (30, 10), strict=True):
        reporter.begin(label, labels.index(label) + 1, len(labels))
        reporter.progress(label, Progress(stage="evaluate", done=done, total=40, unit="questions"))
    assert told.last is not None and (told.last.done, told.last.total) == (40, 80)
    for label in (*SHARDS, "evaluate Q4_K_M"):
        reporter.end(label, result)
    n_lines = len([step for step in plan.steps if not step.whole])
    assert told.events[0].startswith("begin evaluate Q4_K_M, 2 shards ") and told.events[0].endswith(f"/{n_lines}")
    assert told.events[1:] == ["end evaluate Q4_K_M, 2 shards 65"]


def test_until_all_shards_have_told_their_total_the_others_count_as_much(plan: BuildPlan) -> None:
    told = Told()
    reporter = ShardReporter(plan.steps, (), told)
    reporter.progress(SHARDS[0], Progress(stage="evaluate", done=30, total=40, unit="questions"))
    assert told.last is not None and (told.last.done, told.last.total) == (30, 80)
    resumed = ShardReporter(plan.steps, SHARDS[:1], told)
    resumed.progress(SHARDS[1], Progress(stage="evaluate", done=30, total=40, unit="questions"))
    assert (told.last.done, told.last.total) == (30, 40)


@pytest.mark.commands
@pytest.mark.parametrize("on_nodes", [True, False])
def test_a_run_tells_each_stage_once_and_what_ran_has_each_shard(
    local_source: Source, measured: MakeMeasured, on_nodes: bool
) -> None:
    runner, told = measured(local_source, FakeEngine()), Told()
    runner.plan = plan_in_shards(runner.plan, (), 2)
    runner.limit = Concurrency(3, 0, on_nodes=True) if on_nodes else None
    runner.run(told)
    begun = [event.rpartition(" ")[0].removeprefix("begin ") for event in told.events if event.startswith("begin")]
    ended = [event.rpartition(" ")[0].removeprefix("end ") for event in told.events if event.startswith("end")]
    assert sorted(begun) == sorted(ended)
    assert not [label for label in begun if " shard " in label]
    assert "evaluate Q4_K_M, 2 shards" in begun and "divergence Q4_K_M, 2 shards" in begun
    assert {*SHARDS} <= {*runner.ran}


def test_the_first_failed_shard_fails_the_stage_and_is_named(local_source: Source, measured: MakeMeasured) -> None:
    engine, told = FakeEngine(behaviours={label: fails(ExitCode.BUG) for label in SHARDS}), Told()
    runner = measured(local_source, engine, quants="Q4_K_M,Q8_0")
    runner.plan = plan_in_shards(runner.plan, (), 2)
    runner.limit, runner.keep_going = Concurrency(8, 0, on_nodes=True), True
    runner.run(told)
    (failed,) = [event for event in told.events if event.startswith("fail")]
    assert failed.startswith("fail evaluate Q4_K_M, 2 shards: [evaluate Q4_K_M shard ")


@pytest.mark.parametrize(
    ("nodes", "quants", "shards"), [(2, "Q4_K_M", 1), (5, "Q4_K_M", 3), (16, "Q4_K_M,Q8_0", 6), (1000, "Q4_K_M", 8)]
)
def test_by_default_shards_keep_every_node_at_work(
    local_source: Source, measured: MakeMeasured, nodes: int, quants: str, shards: int
) -> None:
    plan = measured(local_source, FakeEngine(), quants).plan
    assert default_shards(plan, nodes) == default_shards(plan_in_shards(plan, (), 8), nodes) == shards
    assert default_shards(replace(plan, steps=plan.steps[:1]), nodes) == 1


def test_no_shard_is_without_a_chunk_or_a_named_domain() -> None:
    chunks = DivergenceRequest(label="Q", settings=DivergenceSettings(n_chunks=3))
    domains = DomainsRequest(label="Q", settings=DomainSettings(names=("code", "prose")))
    single = DivergenceRequest(label="Q", settings=DivergenceSettings(n_chunks=1))
    for request, shards in ((chunks, 3), (domains, 2), (single, 0), (DivergenceRequest(label="Q"), 50)):
        step = Step("measured", STAGES[request.stage], request, {}, 0)
        divided = plan_steps_in_shards([step], (), 50)
        assert len([each for each in divided if each.whole]) == shards


def test_what_is_summed_in_order_or_timed_is_never_divided() -> None:
    """Sums of an importance matrix depend on their order; what is timed has its node to itself."""
    takes_shards = {name for name, request in stage_request_types().items() if "shard" in request.model_fields}
    assert takes_shards == set(SHARDED_STAGES)
    assert not takes_shards & {"calibrate", "speed", "cache", "openvino"}
    matrix = Step("calibrate", STAGES["calibrate"], CalibrateRequest(n_chunks=8), {}, 0)
    assert [*plan_steps_in_shards([matrix], (), 4)] == [matrix]
