#!/usr/bin/env python3
"""Measure what several nodes bring, and that measurements in shards are the same bits: ratios, all taken in one run.

How to run:

    make demo                                           # once: the file that is measured
    .venv-bench/bin/python scripts/bench_cluster.py     # about 5 minutes on 2 cores

    --only NAME,…   some rows: waits, slurm, divergence, evaluation          --json   one object on stdout

What is measured, and the limit of each:

    waits        a matrix of three quants in two shards whose stages only wait, on two nodes against one: at least
                 1.8 x. No process runs, so this is the order in which the runner starts steps, and nothing else.
    slurm        every stage of a tiny model as a job of an idle Slurm of one node, against the same stage as a process:
                 at most 3 s more. A run there with nothing to do: at most 2 s. Needs root, or SLURM_CONF.
    divergence   a divergence of the demo's Q4_K_M in 2 and 5 shards: values that differ from those of the whole: 0.
    evaluation   the suite smoke on the demo's Q4_K_M in 2 and 4 shards: values and answers that differ: 0. Tokens that
                 all shards decode against those of the whole: at most 1.03 x.

    Both also say, without a limit, how many times as fast two workers are as one: the whole against the longest shard
    and what puts the shards together, each a process with one thread, in seconds of CPU, so that other work on the
    machine does not count. Start, loading and the self-check are in these times, as they are in those of a job.

Exit codes:  0 every limit holds · 1 one does not (it is named) · 2 it cannot be measured
"""

# ruff: noqa: T201 (a script for people prints)
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from quantyard.engines import OnProgress  # noqa: E402 (the path above comes first)
from quantyard.execution.runner import PlanRunner  # noqa: E402
from quantyard.execution.scheduler import Concurrency  # noqa: E402
from quantyard.plan.shards import plan_in_shards  # noqa: E402
from quantyard.plan.steps import StageSpec  # noqa: E402
from quantyard.protocol.base import Progress, StageRequest, StageResult  # noqa: E402
from quantyard.protocol.evaluation import (  # noqa: E402
    DivergenceRequest,
    DivergenceSettings,
    EvaluateRequest,
    Runtime,
    TaskEntry,
)
from quantyard.store.artifact import Artifact, Workspace  # noqa: E402
from quantyard.store.stages import ModelStore  # noqa: E402
from quantyard.workflows.demo import DEMO_NAME  # noqa: E402
from scripts.bench_build import cannot, say  # noqa: E402
from scripts.scale_study import model_plan  # noqa: E402
from tests.shards import MeasuringStage, RanStage, without_times  # noqa: E402
from tests.unit.fake_engine import FakeEngine  # noqa: E402

WAITS_S: Final[Mapping[str, float]] = {"evaluate": 1.0, "divergence": 0.5, "quantize": 0.3, "speed": 0.3}
WAIT_S: Final = 0.1  # of other stages
MERGE_S: Final = 0.02
WORKERS: Final = 2
ONE_THREAD: Final = Runtime(threads=1)
DIVERGENCE_SHARDS, EVALUATION_SHARDS = (2, 5), (2, 4)
LEAST_RATIO, MOST_TOKENS = 1.8, 1.03


@dataclass(frozen=True)
class ClusterRow:
    """One figure, and whether its limit holds."""

    what: str
    measured: float
    limit: str
    holds: bool
    detail: str = ""


# ---- stages that wait --------------------------------------------------------------------------------


@dataclass
class WaitingEngine(FakeEngine):
    """Its stages do nothing but wait."""

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        """Wait as long as such a stage takes, in proportion."""
        shard = getattr(spec.request, "shard", None)
        is_merge = any(name.startswith("shard-") for name in inputs)
        waits_s = WAITS_S.get(spec.row.name, WAIT_S)
        time.sleep(MERGE_S if is_merge else waits_s / (shard.count if shard else 1))
        return super().run(spec, space, inputs, on_progress)


@dataclass
class SilentReporter:
    """Tells nothing."""

    begun: list[str] = field(default_factory=list)

    def begin(self, label: str, number: int, of: int) -> None:
        """A step begins."""
        self.begun.append(f"{number}/{of} {label}")

    def progress(self, label: str, progress: Progress) -> None:
        """It is under way."""

    def end(self, label: str, result: StageResult) -> None:
        """It has ended."""

    def fail(self, label: str, text: str) -> None:
        """It has failed."""

    def note(self, text: str) -> None:
        """Something is worth knowing."""


def waited_s(nodes: int, folder: Path) -> float:
    """Seconds of a matrix whose stages wait, on so many nodes."""
    plan = plan_in_shards(model_plan(0, 1000, "Q4_K_M,Q6_K,Q8_0"), (), 2)
    runner = PlanRunner(plan, WaitingEngine(), ModelStore(folder / str(nodes), plan.source.model), REPO_DIR)
    runner.limit = Concurrency(nodes, 0, on_nodes=True)
    started = time.monotonic()
    runner.run(SilentReporter())
    return time.monotonic() - started


def waits_rows(folder: Path) -> Iterator[ClusterRow]:
    """Two nodes against one."""
    say("a matrix whose stages wait, on one node and on two")
    one, two = waited_s(1, folder), waited_s(2, folder)
    ratio = one / two
    yield ClusterRow(
        "two nodes against one", ratio, f"≥ {LEAST_RATIO} x", ratio >= LEAST_RATIO, f"{one:.1f} s against {two:.1f} s"
    )


def job_rows(folder: Path) -> Iterator[ClusterRow]:
    """What a job adds to each stage, and a run with nothing to do."""
    from scripts.slurm_rows import MOST_ADDED_S, MOST_IDLE_S, added_seconds

    added = added_seconds(folder)
    idle = added.pop("nothing to do")
    worst = max(added.values())
    detail = ", ".join(f"{label} {seconds:.1f}" for label, seconds in added.items())
    yield ClusterRow("seconds added by a job of Slurm, most", worst, f"≤ {MOST_ADDED_S}", worst <= MOST_ADDED_S, detail)
    yield ClusterRow("a run on Slurm with nothing to do, seconds", idle, f"< {MOST_IDLE_S}", idle < MOST_IDLE_S)


# ---- the same bits -----------------------------------------------------------------------------------


def demo_file(quant: str) -> Path:
    """The demo model in this quant."""
    found = [path for path in (REPO_DIR / "artifacts").glob(f"**/{DEMO_NAME}-{quant}.gguf") if DEMO_NAME in path.parts]
    if not found:
        cannot(f"there is no {DEMO_NAME} in {quant} below artifacts/. Type: make demo")
    return max(found, key=lambda path: path.stat().st_mtime)


def divergence_rows(folder: Path) -> Iterator[ClusterRow]:
    """Chunks over 1, 2 and 5 workers."""
    from eval.divergence import divergence

    request = DivergenceRequest(
        label="Q4_K_M", baseline_file=demo_file("Q8_0").name, model_file=demo_file("Q4_K_M").name,
        settings=DivergenceSettings(n_chunks=20, n_ctx=256), runtime=ONE_THREAD,
    )
    files = {"model": demo_file("Q4_K_M"), "baseline": demo_file("Q8_0")}
    yield from compared_rows(folder, divergence, request, files, DIVERGENCE_SHARDS)


def evaluation_rows(folder: Path) -> Iterator[ClusterRow]:
    """Blocks of questions over 1, 2 and 4 workers."""
    from eval.evaluate import evaluate

    gguf = demo_file("Q4_K_M")
    tasks = tuple(TaskEntry(task=f"smoke_{name}") for name in ("questions", "generation"))
    request = EvaluateRequest(
        label="Q4_K_M", model_file=gguf.name, tasks=tasks, include_path="smoke", runtime=ONE_THREAD
    )
    files = {"model": gguf, "suite": REPO_DIR / "eval" / "suites"}
    yield from compared_rows(folder, evaluate, request, files, EVALUATION_SHARDS)


def compared_rows(
    folder: Path, work: Callable[..., Any], request: StageRequest, files: Mapping[str, Path], counts: tuple[int, ...]
) -> Iterator[ClusterRow]:
    """The whole, and the same in shards."""
    stage = MeasuringStage(work, request, files)
    say(f"{request.stage}, whole")
    with fresh_workers() as workers:
        whole = workers.submit(stage.run, folder / "whole").result()
    for count in counts:
        say(f"{request.stage} in {count} shards")
        with fresh_workers() as workers:
            merged, shards = stage.run_in_shards(folder / str(count), count, workers)
        if count == WORKERS:
            yield faster_row(request.stage, whole.cpu_s, max(shard.cpu_s for shard in shards) + merged.cpu_s)
        differ = [name for name, value in left_by(whole).items() if left_by(merged).get(name) != value]
        yield ClusterRow(
            f"{request.stage} in {count} shards: files that differ", len(differ), "0", not differ, ", ".join(differ)
        )
        if decoded := sum(map(decoded_tokens, shards)):
            ratio = decoded / without_times(whole.left("evaluation.json"))["n_tokens_decoded"]
            yield ClusterRow(
                "… tokens decoded against the whole", ratio, f"≤ {MOST_TOKENS} x", ratio <= MOST_TOKENS
            )


def fresh_workers() -> ProcessPoolExecutor:
    """Workers that start a process for each run, as a job does."""
    return ProcessPoolExecutor(WORKERS, get_context("spawn"), _be_silent, max_tasks_per_child=1)


def _be_silent() -> None:
    """Let the progress of stages go nowhere: stdout is the table's."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def faster_row(stage: str, alone_s: float, together_s: float) -> ClusterRow:
    """How many times as fast the workers are as one."""
    detail = f"{alone_s:.0f} s of CPU against {together_s:.0f} s"
    return ClusterRow(f"{stage}, two workers against one", alone_s / together_s, "none", True, detail)


def left_by(ran: RanStage) -> dict[str, Any]:
    """What a stage left, by a name without its time: results without times, and lm-eval's samples as they are."""
    found: dict[str, Any] = {path.name: ran.left(path.name) for path in ran.files.glob("*.json")}
    return found | {path.name.partition("_2")[0]: path.read_bytes() for path in ran.files.rglob("samples_*.jsonl")}


def decoded_tokens(shard: RanStage) -> int:
    """Tokens that a shard of an evaluation decoded for its questions; 0 for another stage."""
    return sum(json.loads(path.read_bytes())["counts"][1] for path in shard.files.glob("units/*.json"))


# To add a row: add a function that yields it.
ROWS: Final[Mapping[str, Callable[[Path], Iterator[ClusterRow]]]] = {
    "waits": waits_rows, "slurm": job_rows, "divergence": divergence_rows, "evaluation": evaluation_rows,
}  # fmt: skip


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description="What several nodes bring, and that shards are the same bits.")
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(ROWS):
        cannot(f"there is no row {min(unknown)!r}; the rows: {', '.join(ROWS)}")
    rows = list[ClusterRow]()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for row in ROWS[name](Path(folder)):
                rows.append(row)
                verdict = "ok" if row.holds else "OVER"
                if not args.json:
                    print(f"{row.what:<48}{row.measured:>7.2f}  {row.limit:<8}{verdict:<5}{row.detail}", flush=True)
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
