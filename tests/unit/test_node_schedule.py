"""What tasks take on several nodes: waves, the longest chain, schedules and shared bandwidth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantyard.cli.json_outputs.building import plan_output
from quantyard.cli.render import build as summary
from quantyard.execution.scheduler import Concurrency, Taken
from quantyard.forecast.cost import forecast_cost
from quantyard.forecast.expected_times import Forecast, StepTime
from quantyard.forecast.node_schedule import (
    NodeNetwork,
    NodeTask,
    critical_path,
    node_counts,
    node_waves,
    plan_node_tasks,
    run_on_nodes,
)
from quantyard.forecast.samples import ForecastBook, TimingSample
from quantyard.forecast.time import ForecastConditions, forecast_times, forecast_works, learn_forecast_times
from quantyard.plan.shards import plan_in_shards
from quantyard.plan.steps import BuildPlan
from quantyard.sources.resolve import Source
from quantyard.workflows.results import Planned
from tests.unit.conftest import MakeMeasured
from tests.unit.fake_engine import FakeEngine

DIAMOND = (
    NodeTask("a", 1), NodeTask("b", 4, ("a",)), NodeTask("c", 2, ("a",)), NodeTask("d", 3, ("b", "c")),
)  # fmt: skip
CPU = "x86_64 a CPU"
NODES = ForecastConditions("slurm", Concurrency(4, 0, on_nodes=True), "slurm debug", "slurm debug, 8 cores")


@pytest.fixture
def plan(local_source: Source, measured: MakeMeasured) -> BuildPlan:
    """Of a model of 1,000 weights: convert, two quants, and all that measures them, in three shards."""
    return plan_in_shards(measured(local_source, FakeEngine(), "Q4_K_M,Q8_0").plan, (), 3)


def test_waves_and_the_critical_path_follow_the_inputs() -> None:
    assert node_waves(DIAMOND) == [["a"], ["b", "c"], ["d"]]
    assert critical_path(DIAMOND) == (8, ["a", "b", "d"])
    assert node_waves(()) == [] and critical_path(()) == (0, [])


def test_nodes_share_what_is_ready_and_no_number_beats_the_critical_path() -> None:
    assert [run_on_nodes(DIAMOND, nodes).seconds for nodes in (1, 2, 9)] == [10, 8, 8]
    assert run_on_nodes(DIAMOND, 2).ended_s == {"a": 1, "c": 3, "b": 5, "d": 8}
    assert [*node_counts(1)] == [1] and [*node_counts(6)] == [1, 2, 4, 6] and [*node_counts(8)] == [1, 2, 4, 8]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.integers(1, 8), st.randoms())
def test_a_schedule_is_between_its_bounds(seconds: list[float], nodes: int, chosen: object) -> None:
    tasks = [
        NodeTask(str(i), s, tuple(str(j) for j in range(max(0, i - 3), i) if chosen.random() < 0.4))  # type: ignore[attr-defined]
        for i, s in enumerate(seconds)
    ]
    longest, ran = critical_path(tasks)[0], run_on_nodes(tasks, nodes)
    assert len(ran.ended_s) == len(tasks)
    assert max(longest, sum(seconds) / nodes) <= ran.seconds + 1e-6
    assert ran.seconds <= sum(seconds) / nodes + longest + 1e-6  # Graham's bound


def test_transfers_share_the_store_but_not_their_links() -> None:
    readers = [NodeTask(str(i), 1, (), read_bytes=10, written_bytes=5) for i in range(2)]
    assert run_on_nodes(readers, 2, NodeNetwork(link=10)).seconds == pytest.approx(2.5)
    crowded = run_on_nodes(readers, 2, NodeNetwork(link=10, store=10))
    assert crowded.seconds == pytest.approx(2 + 1 + 1)
    assert crowded.store_use(NodeNetwork(10, 10)) == pytest.approx(30 / 40)
    assert crowded.node_use == pytest.approx(1)


def test_the_plan_shows_waves_times_and_the_critical_path(plan: BuildPlan, tmp_path: Path) -> None:
    time = Forecast({step.label: StepTime(60.0, rough=False) for step in plan.steps})
    cost = forecast_cost(plan, (), 0, tmp_path, time)
    planned = Planned(plan, frozenset(), cost, "docker", "", tmp_path, nodes=4)
    shown = summary.terminal_plan(planned)
    assert "evaluate BF16, 3 shards" in shown
    assert "critical path" in shown and "→ report" in shown
    found = json.loads(plan_output(planned).model_dump_json())["nodes"]
    assert found["waves"][0] == ["datasets", "convert"]
    assert found["seconds"]["1"] == 60 * len(plan.steps)
    assert found["seconds"]["4"] >= found["critical_path_seconds"] == 60 * len(found["waves"])
    alone = Planned(plan, frozenset(), cost, "docker", "", tmp_path)
    assert "critical path" not in summary.terminal_plan(alone) and plan_output(alone).nodes is None


def test_what_is_finished_is_not_waited_for(plan: BuildPlan) -> None:
    tasks = plan_node_tasks(plan, {"convert", "datasets"}, Forecast())
    assert "convert" not in {label for task in tasks for label in (task.label, *task.needs)}


# ---- forecasts ---------------------------------------------------------------------------------------


def _sample(kind: str, seconds: float, amount: float, **other: object) -> TimingSample:
    values: dict[str, object] = {
        "key": f"{kind} {seconds}", "kind": kind, "amount": amount, "variant": "", "family": "", "seconds": seconds,
        "engine": "slurm", "threads": 0, "cpu": CPU, "concurrent": False, "at": "2026-11-30",
    }  # fmt: skip
    return TimingSample.model_validate(values | other)


def test_rates_are_those_of_the_class_of_nodes(plan: BuildPlan) -> None:
    book = ForecastBook(samples=[
        _sample("convert", 10, 1000, node_class="slurm debug, 8 cores"),
        _sample("convert", 99, 1000, cpu="slurm debug"),
        _sample("convert", 50, 1000, node_class="slurm gpu, 8 cores"),
    ])  # fmt: skip
    assert forecast_times(plan, (), book, NODES).steps["convert"].seconds == 10
    here = ForecastConditions("docker", Concurrency(1, 10**12), "slurm debug")
    assert forecast_times(plan, (), book, here).steps["convert"].seconds == 99, "by the CPU, as ever"


def test_a_shard_is_its_share_of_the_work_and_the_whole_is_learned_from_it(plan: BuildPlan) -> None:
    whole = next(step for step in plan.steps if step.label == "evaluate Q4_K_M")
    shards = [step for step in plan.steps if step.whole == whole.label]
    taken = [Taken(step.label, step.label, 30.0) for step in shards]
    taken.append(Taken(whole.label, "whole", 3.0, n_questions=300))
    book = ForecastBook()
    learn_forecast_times(book, plan, taken, NODES)
    assert {(sample.kind, sample.asked, sample.node_class) for sample in book.samples} == {
        ("evaluate", 300, NODES.node_class), ("merge", 0, NODES.node_class),
    }  # fmt: skip
    found = forecast_times(plan, (), book, NODES).steps
    assert found["evaluate Q8_0 shard 2 of 3"].seconds == pytest.approx(30, rel=0.01)
    assert found["evaluate Q8_0"].seconds == pytest.approx(3)
    works = forecast_works(plan, plan.steps, book, shares=False)
    amounts = [works[f"divergence Q4_K_M shard {index} of 3"].amount for index in (1, 2, 3)]  # type: ignore[union-attr]
    assert len(set(amounts)) == 1
