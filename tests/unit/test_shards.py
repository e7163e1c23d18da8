"""Plans in shards: their steps, their keys, what runs and what is recorded; and the division of work."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantyard.engines.capacity import Capacity
from quantyard.execution.runner import PlanRunner
from quantyard.execution.scheduler import Concurrency, concurrency_of
from quantyard.plan.shards import plan_in_shards
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.shard import Shard, shard_members, shard_range
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Workspace
from quantyard.store.manifest import Manifest, read_manifest
from tests.unit.conftest import MakeMeasured, Notes
from tests.unit.fake_engine import FakeEngine, evaluates, fails

FLEET = Concurrency(3, 0, on_nodes=True)

# ---- the division ------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), max_size=60), st.integers(2, 9))
def test_every_unit_is_in_one_shard_and_none_has_more_than_its_share_and_a_unit(costs: list[float], count: int) -> None:
    members = [shard_members(costs, Shard(index=index, count=count)) for index in range(1, count + 1)]
    assert sorted(at for own in members for at in own) == list(range(len(costs)))
    most = max((sum(costs[at] for at in own) for own in members), default=0.0)
    assert most <= sum(costs) / count + max(costs, default=0.0) + 1e-6


@given(st.integers(0, 500), st.floats(0, 50), st.integers(2, 9))
def test_chunks_in_a_row_are_divided_in_their_order(n: int, tail: float, count: int) -> None:
    ranges = [shard_range(n, tail, Shard(index=index, count=count)) for index in range(1, count + 1)]
    assert [at for own in ranges for at in own] == list(range(n))


def test_a_shard_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 2 shards"):
        Shard(index=3, count=2)


# ---- plans -------------------------------------------------------------------------------------------


def _in_shards(
    measured: MakeMeasured, source: Source, engine: FakeEngine, count: int = 2, **changes: Any
) -> PlanRunner:
    """A runner whose plan is divided as `plan` and the commands divide it."""
    runner = measured(source, engine, **changes)
    finished = set(runner.find_finished())
    runner.plan = plan_in_shards(runner.plan, finished, count)
    return runner


def _manifest(runner: PlanRunner) -> Manifest:
    found = read_manifest(runner.store.folder / "manifest.json")
    assert found is not None
    return found


def test_a_plan_in_one_shard_is_the_plan(local_source: Source, measured: MakeMeasured) -> None:
    plan = measured(local_source, FakeEngine()).plan
    assert plan_in_shards(plan, (), 1) is plan
    evaluation = next(step.request for step in plan.steps if step.row.name == "evaluate")
    assert "shard" not in evaluation.model_dump(mode="json")


def test_an_evaluation_without_tasks_is_not_divided(local_source: Source, measured: MakeMeasured) -> None:
    runner = measured(local_source, FakeEngine())
    steps = tuple(
        replace(step, request=step.request.model_copy(update={"tasks": ()})) if step.row.name == "evaluate" else step
        for step in runner.plan.steps
    )
    divided = plan_in_shards(replace(runner.plan, steps=steps), (), 2).steps
    assert not [step for step in divided if step.row.name == "evaluate" and (step.whole or step.keyed_by)]
    assert [step for step in divided if step.row.name == "divergence" and step.whole]


def test_a_plan_in_shards_is_not_divided_again(local_source: Source, measured: MakeMeasured) -> None:
    divided = plan_in_shards(measured(local_source, FakeEngine()).plan, (), 2)
    assert plan_in_shards(divided, (), 3).steps == divided.steps


def test_shards_run_before_what_puts_them_together(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine()
    _in_shards(measured, local_source, engine).run(notes)
    at = engine.ran.index("evaluate BF16 shard 1 of 2")
    assert engine.ran[at:] == [
        "evaluate BF16 shard 1 of 2", "evaluate BF16 shard 2 of 2", "evaluate BF16",
        "evaluate Q4_K_M shard 1 of 2", "evaluate Q4_K_M shard 2 of 2", "evaluate Q4_K_M",
        "divergence BF16, Q4_K_M shard 1 of 2", "divergence BF16, Q4_K_M shard 2 of 2",
        "divergence BF16", "divergence Q4_K_M", "speed BF16", "speed Q4_K_M", "report",
    ]  # fmt: skip
    assert set(engine.told["evaluate Q4_K_M"]) == {"model", "datasets", "shard-1", "shard-2"}
    assert set(engine.told["divergence Q4_K_M"]) == {"shard-1", "shard-2"}


def test_the_result_has_the_key_of_the_whole_so_neither_is_measured_again(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    first = _in_shards(measured, local_source, FakeEngine(), count=3)
    first.run(notes)
    whole, again = FakeEngine(), FakeEngine()
    measured(local_source, whole).run(notes)
    _in_shards(measured, local_source, again, count=2).run(notes)
    assert whole.ran == again.ran == []


def test_the_manifest_is_that_of_the_whole_and_names_the_machines_of_the_shards(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    labels = [f"evaluate Q4_K_M shard {index} of 2" for index in (1, 2)]
    runner = _in_shards(measured, local_source, FakeEngine(cpus={label: f"CPU of {label}" for label in labels}))
    runner.run(notes)
    stages = _manifest(runner).stages
    assert not [label for label in stages if "shard" in label]
    assert [node.cpu for node in stages["evaluate Q4_K_M"].shard_nodes] == [f"CPU of {label}" for label in labels]
    assert "shard" not in stages["evaluate Q4_K_M"].request
    assert set(stages["evaluate Q4_K_M"].inputs) == {"model", "datasets"}


def test_shards_of_a_result_that_is_found_on_the_way_do_not_run(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    """The images are new to the planner, so that no key is known when the plan is divided."""
    measured(local_source, FakeEngine(image=None)).run(notes)
    engine = FakeEngine(image=None)
    _in_shards(measured, local_source, engine).run(notes)
    assert engine.ran == []


# ---- on several machines -----------------------------------------------------------------------------


def test_on_several_machines_measurements_run_at_the_same_time(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    together = threading.Barrier(2, timeout=20)

    def meets(spec: StageSpec, space: Workspace) -> StageResult:
        together.wait()
        return evaluates(spec, space)

    engine = FakeEngine(behaviours={f"evaluate BF16 shard {index} of 2": meets for index in (1, 2)})
    runner = _in_shards(measured, local_source, engine)
    runner.limit = FLEET
    runner.run(notes)
    assert engine.ran[-1] == "report"
    assert {taken.label for taken in runner.taken if taken.concurrent} == set()


@pytest.mark.commands
def test_on_several_machines_a_failed_quant_does_not_stop_the_others(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    engine = FakeEngine(behaviours={"evaluate Q8_0 shard 2 of 2": fails(ExitCode.BUG)})
    runner = _in_shards(measured, local_source, engine, quants="Q4_K_M,Q8_0")
    runner.limit, runner.keep_going = FLEET, True
    runner.run(notes)
    assert engine.ran[-1] == "report"
    assert "evaluate Q8_0" not in engine.ran
    assert [m.file.label for m in runner.measured.report.measurements] == ["BF16", "Q4_K_M"]  # type: ignore[union-attr]


def test_an_engine_of_several_nodes_runs_as_many_stages_as_it_says() -> None:
    assert concurrency_of(Capacity("cpu", 8, 2**30, 10, nodes=5)) == Concurrency(10, 2**30, on_nodes=True)
    assert not concurrency_of(Capacity("cpu", 8, 2**30, 4)).on_nodes
    assert FLEET.allows(2, 10**15, 10**15)
    assert not FLEET.allows(3, 0, 0)
