#!/usr/bin/env python3
"""Measure what one run of many quants saves: ratios within one run, on the same work, threads and machine.

How to run:

    make demo                                     # once: it makes the model that is measured
    .venv/bin/python scripts/bench_matrix.py      # about 25 minutes on 2 cores, 3 GB of disk below artifacts/

    --model DIR       another model in Hugging Face format      --suite S   what is measured (default: smoke)
    --quants A,B,…    which quants, six by default              --limit N   questions of each task (default: 4)
    --json            one object on stdout

ENGINE counts as everywhere, and is docker where it is not set. Run it on a quiet machine: llama.cpp's threads spin
while they wait, and beside another busy process every time is another. The runs of one side are before and after the
other's.

What is compared: one `quantyard matrix` of six quants without an importance matrix, and one `build` of six, with six
times `build` and then `eval` of one quant. Each of those has an empty store of its own, as on six machines, or for
somebody who keeps none: with one store for all, they too would convert once, and measure the baseline's scores and
speed once.

    measured     one matrix against six times build and eval: at most 0.6 x.
    built        one build of six against six builds: at most 0.4 x.
    divergence   the divergence of six files in step against six times two models in step, the same tokens: at most
                 0.62 x of the time that the stage itself takes. Every run also has the baseline's own perplexity, so
                 7 models read the text in the one, and 12 in the six.
    cpu          of all cores, how much was busy while a quantize stage ran, in the build of six (/proc/stat, so Linux
                 only): at least 0.85.

Below them, for every stage, what it took in the one run and in the six: in the stage itself, and whole, which is the
time between two stages' lines and so has the start of containers and of Python in it, and the store's own work. Stages
that run side by side take longer in themselves than whole.

Exit codes:  0 every limit holds · 1 one does not (it is named) · 2 it cannot be measured
"""

# ruff: noqa: T201 (a script for people prints)
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from quantyard.execution.scheduler import CONCURRENT_STAGES  # noqa: E402
from quantyard.plan.stages import STAGES  # noqa: E402
from quantyard.store.manifest import read_manifest  # noqa: E402 (the path above comes first)
from scripts.bench_build import beside, cannot, say, timed, timed_lines  # noqa: E402
from scripts.bench_table import Row  # noqa: E402

DEMO = REPO_DIR / "artifacts" / "demo" / "SmolLM2-135M-Instruct"
SIX_QUANTS = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
SAMPLE_S = 0.05
BESIDE = "quantize, verify"  # they run side by side, and their lines come together
NAMES = {name: name for name in STAGES} | dict.fromkeys(CONCURRENT_STAGES, BESIDE)  # of stages, in the table
Seconds = Mapping[str, float]  # by the stage's name


@dataclass(frozen=True)
class Run:
    """One command, or several, as seen from outside."""

    wall_s: float
    whole_s: Seconds  # from line to line
    inside_s: Seconds  # what the stages say of themselves

    def __add__(self, other: Run) -> Run:
        """Both, one after the other."""
        whole, inside = (
            {name: one.get(name, 0) + two.get(name, 0) for name in dict.fromkeys((*one, *two))}
            for one, two in ((self.whole_s, other.whole_s), (self.inside_s, other.inside_s))
        )
        return Run(self.wall_s + other.wall_s, whole, inside)


NOTHING = Run(0.0, {}, {})


@dataclass
class Cores:
    """How busy all cores are while a quantize stage runs below a folder: from when it can write until its result."""

    folder: Path
    busy: int = 0  # ticks
    total: int = 0

    def watching(self) -> AbstractContextManager[None]:
        """Sample until the block ends."""
        return beside(self._sample)

    @property
    def share(self) -> float:
        """0 to 1."""
        if not self.total:
            cannot("No quantize stage was seen at work; is there a /proc/stat?")
        return self.busy / self.total

    def _sample(self, stop: threading.Event) -> None:
        before, running = ticks(), False
        while not stop.wait(SAMPLE_S):
            now = ticks()
            if running:
                self.busy += now[0] - before[0]
                self.total += now[1] - before[1]
            before, running = now, self._runs()

    def _runs(self) -> bool:
        places = self.folder.glob("*/*/*/stages/.quantize-*/out/files")
        return any(not (place.parent / "result.json").exists() for place in places)


def ticks() -> tuple[int, int]:
    """Of all cores since the machine started: busy ones, and all. Waiting for a disk is not busy."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0, 0
    values = [int(value) for value in path.read_text().splitlines()[0].split()[1:9]]  # guests count as user already
    return sum(values) - values[3] - values[4], sum(values)


@dataclass(frozen=True)
class Bench:
    """What is measured with."""

    model: Path
    quants: tuple[str, ...]
    suite: str
    limit: int
    engine: str
    scratch: Path

    def run(self, command: str, quants: Sequence[str], store: str) -> Run:
        """One command on a store; what is in it already is not made again."""
        started = time.monotonic()
        process = subprocess.Popen(
            self.argv(command, quants, store), cwd=REPO_DIR, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines = timed_lines(process)
        if process.wait() != 0:
            cannot("".join(line for _, line in lines[-10:]) + f"{command} {','.join(quants)} failed.")
        wall_s, whole_s = time.monotonic() - started, whole_walls(lines)
        say(f"{command} {','.join(quants)}: {wall_s:.1f} s")
        return Run(wall_s, whole_s, inside_of(self.scratch / store, set(whole_s)))

    def argv(self, command: str, quants: Sequence[str], store: str) -> list[str]:
        """The command line."""
        asked = [f"--model={self.model}", f"--engine={self.engine}", f"--artifacts={self.scratch / store}"]
        asked.append(f"--{'quants' if command == 'matrix' else 'quant'}={','.join(quants)}")
        asked += ["--imatrix=none"]
        asked += [f"--suite={self.suite}", f"--limit={self.limit}"] if command != "build" else []
        return [sys.executable, "-m", "quantyard", command, *asked]

    def alone(self, quant: str) -> tuple[Run, Run]:
        """A build of one quant in an empty store, and the measuring after it."""
        both = self.run("build", [quant], quant), self.run("eval", [quant], quant)
        shutil.rmtree(self.scratch / quant)
        return both


def whole_walls(lines: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Seconds from each stage's line back to the line before it, the plan's last or another stage's."""
    walls: dict[str, float] = defaultdict(float)
    for (before, _), (at, line) in pairwise(lines):
        if name := stage_of(line):
            walls[name] += at - before
    return dict(walls)


def stage_of(line: str) -> str:
    """The stage whose line this is, under its name in the table; "" for every other line."""
    label = line.removeprefix("[").partition("]")[0] if line.startswith("[") else ""
    return NAMES.get(label.partition(" ")[0], "")


def inside_of(store: Path, ran: set[str]) -> dict[str, float]:
    """What the stages of these names took in themselves, by the manifest."""
    manifest = read_manifest(next(store.rglob("manifest.json")))
    assert manifest is not None
    taken: dict[str, float] = defaultdict(float)
    for stage in manifest.stages.values():
        if (name := NAMES[str(stage.request["stage"])]) in ran:
            taken[name] += stage.duration_s
    return dict(taken)


# ---- both sides --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What was measured."""

    built: Run  # all quants in one build
    matrix: Run
    builds: Run  # one build each, added up
    evals: Run  # and what measured each after its build
    cores: float  # busy while quantizing, 0 to 1

    def rows(self) -> list[Row]:
        """The limits."""
        each, in_step = self.builds + self.evals, self.matrix.inside_s["divergence"]
        return [
            ratio("built and measured in one run against one each", self.matrix.wall_s, each.wall_s, 0.6),
            ratio("built in one run against one each", self.built.wall_s, self.builds.wall_s, 0.4),
            ratio("divergence in step against two models each", in_step, each.inside_s["divergence"], 0.62),
            Row("of all cores, busy while quantizing", self.cores, 0.85, f"{os.cpu_count()} cores"),
        ]

    def lines(self) -> list[str]:
        """The limits, then what each stage took."""
        rows = [row.line() for row in self.rows()]
        matrix = table("build and measure, s", self.matrix, self.builds + self.evals)
        return [*rows, "", *matrix, "", *table("build, s", self.built, self.builds)]

    def as_json(self) -> dict[str, object]:
        """All of it."""
        return {"rows": [asdict(row) | {"holds": row.holds} for row in self.rows()], "runs": asdict(self)}


def measure(bench: Bench) -> Found:
    """The one run between the first half of the single ones and the second, should the machine's speed drift."""
    timed([sys.executable, "-m", "quantyard", "images", f"--engine={bench.engine}"])
    alone = [bench.alone(quant) for quant in bench.quants[::2]]
    cores = Cores(bench.scratch / "built")
    with cores.watching():
        built = bench.run("build", bench.quants, "built")
    matrix = bench.run("matrix", bench.quants, "matrix")
    alone += [bench.alone(quant) for quant in bench.quants[1::2]]
    builds, evals = (sum(runs, NOTHING) for runs in zip(*alone, strict=True))
    return Found(built, matrix, builds, evals, cores.share)


def ratio(what: str, one_s: float, each_s: float, limit: float) -> Row:
    """A ceiling on the one run."""
    return Row(what, one_s / each_s, limit, f"{one_s:.1f} s against {each_s:.1f} s", at_most=True)


def table(title: str, one: Run, each: Run) -> list[str]:
    """What each stage took on both sides, and what no stage did."""
    head = f"{title:<24}{'one run:':>10}{'inside':>10}{'whole':>10}{'one each:':>14}{'inside':>10}{'whole':>10}"
    names = dict.fromkeys(name for name in NAMES.values() if name in one.whole_s)
    lines = [
        f"{name:<34}{one.inside_s[name]:>10.1f}{one.whole_s[name]:>10.1f}"
        f"{'':>14}{each.inside_s[name]:>10.1f}{each.whole_s[name]:>10.1f}" for name in names
    ]  # fmt: skip
    rest = [run.wall_s - sum(run.whole_s.values()) for run in (one, each)]
    lines.append(f"{'plan, pages, start and end':<44}{rest[0]:>10.1f}{'':>24}{rest[1]:>10.1f}")
    return [head, *lines]


def main() -> None:
    """Measure, print, and exit as the limits hold."""
    args = parser().parse_args()
    if not (args.model / "config.json").is_file():
        cannot(f"{args.model} is not a model folder. Make the demo's first: make demo, or name one: --model DIR")
    engine = os.environ.get("ENGINE", "docker")
    scratch_in = REPO_DIR / "artifacts"
    scratch_in.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=scratch_in) as scratch:
        quants = tuple(args.quants.split(","))
        found = measure(Bench(args.model.resolve(), quants, args.suite, args.limit, engine, Path(scratch)))
    print(json.dumps(found.as_json(), indent=2) if args.json else "\n".join(found.lines()))
    if short := [row.what for row in found.rows() if not row.holds]:
        print(f"over the limit: {', '.join(short)}", file=sys.stderr)
    sys.exit(1 if short else 0)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=DEMO)
    options.add_argument("--quants", default=SIX_QUANTS)
    options.add_argument("--suite", default="smoke")
    options.add_argument("--limit", type=int, default=4)
    options.add_argument("--json", action="store_true")
    return options


if __name__ == "__main__":
    main()
