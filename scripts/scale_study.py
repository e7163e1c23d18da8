#!/usr/bin/env python3
"""Simulate 100 models × 6 quants on 16 and 256 nodes, from the rates that this store has measured.

How to run:

    make demo                                              # once: the rates of artifacts/.rates.json and manifests
    .venv/bin/python scripts/scale_study.py                # the tables of docs/scale.md, in half a minute
    .venv/bin/python scripts/scale_study.py --write        # … into docs/scale.md

    --artifacts DIR    the store with the rates (default: artifacts)
    --speed N          how many times as fast as the measuring machine a node is (default: 16)
    --questions N      that an evaluation asks (default: 800, as the suite quick)
    --tokens N         that a question takes (default: 100; those of the suite smoke take 14)

Each model has the plan that `quantyard matrix` makes for it: fetch, convert, twin, six quants, verify, evaluate,
divergence, speed, report. The forecast gives each step its seconds, in proportion to the model's weights. Steps start
in the order of the models as soon as their inputs are there and a node is free. Each step reads its inputs from the
store and writes what it makes; no node keeps anything, which is the worst case for the store.

What binds, in the tables, is what comes nearest to its limit: the nodes' work, the store's bandwidth, or the critical
path, which no number of nodes makes shorter.
"""

# ruff: noqa: T201, RUF001, RUF002 (a script for people prints)
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from quantyard.execution.scheduler import Concurrency  # noqa: E402 (the path above comes first)
from quantyard.forecast.from_manifests import known_forecast_times  # noqa: E402
from quantyard.forecast.node_schedule import (  # noqa: E402
    NodeNetwork,
    NodeRun,
    NodeTask,
    critical_path,
    plan_node_tasks,
    run_on_nodes,
)
from quantyard.forecast.samples import ForecastBook  # noqa: E402
from quantyard.forecast.time import ForecastConditions, forecast_times  # noqa: E402
from quantyard.formatting.numbers import format_duration, format_percent  # noqa: E402
from quantyard.plan.build import BuildOptions, make_build_plan  # noqa: E402
from quantyard.plan.evaluation import add_measuring_steps  # noqa: E402
from quantyard.plan.measuring_steps import MeasureOptions  # noqa: E402
from quantyard.plan.shards import plan_in_shards  # noqa: E402
from quantyard.plan.steps import BuildPlan, Step, StepOutput  # noqa: E402
from quantyard.plan.suites import find_suite  # noqa: E402
from quantyard.protocol.base import FileEntry  # noqa: E402
from quantyard.protocol.evaluation import EvaluateRequest, Runtime  # noqa: E402
from quantyard.quants.selection import parse_quants  # noqa: E402
from quantyard.sources.source import Source  # noqa: E402
from quantyard.store.artifact import ModelId  # noqa: E402

QUANTS: Final = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
FLEET: Final = {1e9: 40, 4e9: 30, 8e9: 20, 14e9: 7, 32e9: 2, 70e9: 1}  # weights → how many of 100 models
LARGEST: Final = {70e9: 1}
NODES: Final = (16, 256)
SHARDS: Final = {"1": (1, 0.0), "8 from 14B on": (8, 14e9), "8": (8, 0.0)}  # how many, from how many weights on
STORES: Final = (2e9, 20e9)  # bytes per second of the store, for all nodes together
LINK: Final = 1.25e9  # of each node: 10 Gbit/s
INTERNET: Final = 250e6  # of each fetch
SMOKE_TOKENS: Final = 14  # of a question of the measured suite
SMOKE_QUESTIONS: Final = 192
SELF_CHECK: Final = 95  # in questions of that suite, see forecast/work.py
START_S: Final = 1.0  # of a container, on any node
DOC: Final = REPO_DIR / "docs" / "scale.md"
BEGIN, END = "<!-- scale_study.py: begin -->", "<!-- scale_study.py: end -->"


@dataclass(frozen=True)
class Assumed:
    """The assumptions of a simulation."""

    book: ForecastBook
    cpu: str
    speed: float
    questions: int
    tokens: int

    def evaluation_times(self, shards: int) -> float:
        """How many times as long as a shard of the measured suite a shard of an evaluation takes: each has the
        self-check, and its share of the questions.
        """
        asked = self.questions * self.tokens / SMOKE_TOKENS
        return (asked / shards + SELF_CHECK) / (SMOKE_QUESTIONS / shards + SELF_CHECK)


def model_plan(number: int, n_params: float, quants: str = QUANTS) -> BuildPlan:
    """The plan of a matrix of one model with so many weights."""
    source = Source(
        model=ModelId("org", f"model-{number}", f"{number:040x}"), kind="huggingface", title=f"org/model-{number}",
        files=(FileEntry(path="model.safetensors", size_bytes=int(2 * n_params)),), repo_id=f"org/model-{number}",
        revision="main", dtypes={"BF16": int(n_params)},
    )
    options = BuildOptions(
        quants=parse_quants(quants), outtype="auto", allow_pickle=False, allow_requantize=False, allow_mismatch=(),
        threads=0, workers=4, endpoint=None,
    )
    suite = find_suite("smoke").suite.model_copy(update={"domains": None, "behaviour": None, "cache": None})
    return add_measuring_steps(make_build_plan(source, options), MeasureOptions(suite, Runtime()))


def fleet_tasks(models: dict[float, int], shards: str, assumed: Assumed) -> list[NodeTask]:
    """The tasks of all models, in their order: the small ones and the large ones evenly mixed."""
    count, least = SHARDS[shards]
    sizes = sorted((place / n_models, n) for n, n_models in models.items() for place in range(n_models))
    return [
        task for number, (_, n) in enumerate(sizes)
        for task in model_tasks(number, n, count if n >= least else 1, assumed)
    ]  # fmt: skip


def model_tasks(number: int, n_params: float, shards: int, assumed: Assumed) -> Iterator[NodeTask]:
    """The tasks of one model, with labels of its own."""
    plan = plan_in_shards(model_plan(number, n_params), (), shards)
    where = ForecastConditions("docker", Concurrency(2, 0, on_nodes=True), assumed.cpu)
    time, sizes = forecast_times(plan, (), assumed.book, where), {s.label: s.size_bytes for s in plan.steps}
    for step, task in zip(plan.steps, plan_node_tasks(plan, (), time), strict=True):
        yield replace(
            task, label=f"{number} {task.label}", needs=tuple(f"{number} {label}" for label in task.needs),
            seconds=START_S + _step_seconds(step, task.seconds, assumed), written_bytes=step.size_bytes,
            read_bytes=sum(sizes[o.step] for o in step.inputs.values() if isinstance(o, StepOutput)),
        )


def _step_seconds(step: Step, seconds: float, assumed: Assumed) -> float:
    if step.row.name == "fetch":
        return step.size_bytes / INTERNET
    if not isinstance(step.request, EvaluateRequest) or step.keyed_by is not None:
        return seconds / assumed.speed
    shard = step.request.shard
    return seconds * assumed.evaluation_times(shard.count if shard else 1) / assumed.speed


# ---- the tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One simulation."""

    run: NodeRun
    shards: str
    network: NodeNetwork
    path_s: float  # its transfers at the speed of a link
    work_s: float  # of all nodes together, without transfers

    @property
    def bounds(self) -> dict[str, float]:
        """How near the time is to what each of them allows at best."""
        return {
            "nodes": self.work_s / (self.run.nodes * self.run.seconds), "store": self.run.store_use(self.network),
            "critical path": self.path_s / self.run.seconds,
        }

    def cells(self) -> list[str]:
        """As the table shows it."""
        return [
            str(self.run.nodes), self.shards, f"{self.network.store / 1e9:g} GB/s", format_duration(self.run.seconds),
            *(format_percent(share, 0) for share in self.bounds.values()),
            max(self.bounds, key=self.bounds.__getitem__),
        ]  # fmt: skip


HEAD: Final = ("nodes", "SHARDS", "store", "time", "nodes at work", "store used", "critical path / time", "binds")


def simulated_rows(models: dict[float, int], assumed: Assumed) -> Iterator[Row]:
    """Every combination of nodes, shards and store."""
    for shards in SHARDS if len(models) > 1 else ("1", "8"):
        tasks = fleet_tasks(models, shards, assumed)
        moved = [replace(t, seconds=t.seconds + (t.read_bytes + t.written_bytes) / LINK) for t in tasks]
        path_s = critical_path(moved)[0]
        for nodes in NODES:
            for store in STORES:
                network = NodeNetwork(LINK, store)
                yield Row(run_on_nodes(tasks, nodes, network), shards, network, path_s, sum(t.seconds for t in tasks))


def table(rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def longest_path(models: dict[float, int], shards: str, assumed: Assumed) -> str:
    """The steps of the critical path of the largest model."""
    tasks = [t for t in fleet_tasks(models, shards, assumed) if t.seconds > START_S]
    kept = {task.label for task in tasks}
    tasks = [replace(task, needs=tuple(label for label in task.needs if label in kept)) for task in tasks]
    seconds = {task.label: task.seconds for task in tasks}
    return " → ".join(
        f"{label.partition(' ')[2]} {format_duration(seconds[label])}" for label in critical_path(tasks)[1]
    )


def study(assumed: Assumed) -> str:
    """The part of the page that is generated."""
    total_s = sum(task.seconds for task in fleet_tasks(FLEET, "1", assumed))
    sizes = ", ".join(f"{count} of {n / 1e9:g}B" for n, count in FLEET.items())
    asked = f"{assumed.questions} questions of {assumed.tokens} tokens"
    head = (
        f"100 models × 6 quants ({sizes}): {format_duration(total_s)} of work on one node, which is {assumed.speed:g} "
        f"times as fast as the machine that measured ({assumed.cpu}, 2 cores). An evaluation asks {asked}."
    )
    parts = [
        head,
        table([row.cells() for row in simulated_rows(FLEET, assumed)]),
        "The model of 70B alone:",
        table([row.cells() for row in simulated_rows(LARGEST, assumed)]),
        *(f"Its critical path with SHARDS={n}: {longest_path(LARGEST, n, assumed)}." for n in ("1", "8")),
    ]
    return "\n\n".join(parts)


def main() -> int:
    """Print the study, or write it into the page."""
    parser = argparse.ArgumentParser(description="Simulate 100 models on many nodes, from measured rates.")
    parser.add_argument("--artifacts", type=Path, default=REPO_DIR / "artifacts")
    parser.add_argument("--speed", type=float, default=16.0)
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    args = parser.parse_args()
    book = known_forecast_times(args.artifacts)
    measured = [sample for sample in book.all_samples if sample.kind == "evaluate"]
    if not measured:
        print(f"{args.artifacts} has no rates of an evaluation. Type: make demo", file=sys.stderr)
        return 2
    text = study(Assumed(book, measured[-1].cpu, args.speed, args.questions, args.tokens))
    if not args.write:
        print(text)
        return 0
    before, _, rest = DOC.read_text(encoding="utf-8").partition(BEGIN)
    DOC.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
