#!/usr/bin/env python3
"""Measure what Quantyard adds to the bare tools: ratios and differences, all taken in one run on one machine.

How to run:

    make demo                                      # once: it makes the model that is measured
    .venv/bin/python scripts/bench_build.py        # 5 to 10 minutes, 1 GB of disk below artifacts/

    --model FOLDER   another model in Hugging Face format      --engine docker|local   (docker)
    --quants A,B,…   which quants, six by default              --json                  one object on stdout

Run it on a quiet machine: nothing else at work, no other containers, mains power, the same CPU governor throughout.
The differences it looks for are tenths of a second, and a busy core adds whole ones. What it reads is in the page
cache after the first build, so the disk's speed matters little.

What is measured, and the limit of each:

    stage     wall time between two stages' lines of `build`, less the bare tool's: at most 1 s. The bare tool is the
              stage's own command line, run in the same image on the same files by `docker run`, less the start of a
              container (`docker run … true`), so that starting one counts as added. Of twin and verify, and of every
              stage of the local engine, the bare tool is what the stage itself took (duration_s).
    no-op     a build that is finished already, median of 5: at most 1 s.
    together  all quants in one run against one run each: at most 0.5 x (with six quants).
    disk      most that a build ever has on disk, hard links counted once, against the 16-bit file and the quants:
              at most 1.02 x (the source is used in place).
    memory    the orchestrator's own peak (VmHWM, or ru_maxrss where there is no /proc): at most 150 MB.

Exit codes:  0 every limit holds · 1 one does not (it is named) · 2 it cannot be measured
"""

# ruff: noqa: T201 (a script for people prints)
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from quantyard.store.manifest import Manifest, StageRecord, read_manifest  # noqa: E402
from quantyard.workflows.demo import DEMO_NAME  # noqa: E402  (found only after the line above)

SIX_QUANTS = "Q3_K_M,Q4_0,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
REPEATS = 3  # of each bare tool
NO_OP_REPEATS = 5
SAMPLE_S = 0.05
MB = 1_000_000


@dataclass(frozen=True)
class Row:
    """One line of the table. `limit` None: shown, but not judged."""

    what: str
    measured: float
    limit: float | None
    unit: str
    detail: str

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.limit is None or self.measured <= self.limit


@dataclass(frozen=True)
class Build:
    """One build as it was seen from outside."""

    wall_s: float
    stage_wall_s: dict[str, float]
    peak_disk_bytes: int
    peak_rss_bytes: int
    manifest: Manifest
    folder: Path  # of the model, inside its artifacts


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let `work` run in a thread of its own; it is to end when the event is set, which is at the end of the block."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass
class Watch:
    """Samples a process and a folder while the process runs."""

    pid: int
    folder: Path
    peak_disk_bytes: int = 0
    peak_rss_bytes: int = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample until the block ends."""
        try:
            with beside(self._sample):
                yield
        finally:
            self.peak_disk_bytes = max(self.peak_disk_bytes, disk_bytes(self.folder))

    def _sample(self, stop: threading.Event) -> None:
        while not stop.wait(SAMPLE_S):
            self.peak_rss_bytes = max(self.peak_rss_bytes, high_water_bytes(self.pid))
            self.peak_disk_bytes = max(self.peak_disk_bytes, disk_bytes(self.folder))


@dataclass(frozen=True)
class Bench:
    """What is measured with: a model, quants and an engine; `scratch` is on the disk where artifacts are kept."""

    model: Path
    quants: tuple[str, ...]
    engine: str
    scratch: Path

    def argv(self, quants: Sequence[str], artifacts: Path) -> list[str]:
        """The command line of one build."""
        options = {"model": self.model, "quant": ",".join(quants), "engine": self.engine, "artifacts": artifacts}
        return [sys.executable, "-m", "quantyard", "build", *(f"--{name}={value}" for name, value in options.items())]

    def build(self, name: str, quants: Sequence[str]) -> Build:
        """A build of these quants into artifacts of its own."""
        say(f"building {','.join(quants)}")
        artifacts = self.scratch / name
        started = time.monotonic()
        process = subprocess.Popen(
            self.argv(quants, artifacts), cwd=REPO_DIR, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        watch = Watch(process.pid, artifacts)
        with watch.watching():
            lines = timed_lines(process)
            status, usage = wait(process)
            wall_s = time.monotonic() - started
        if status != 0:
            cannot("".join(line for _, line in lines[-10:]) + f"The build of {','.join(quants)} failed.")
        path = next(artifacts.rglob("manifest.json"))
        manifest = read_manifest(path)
        assert manifest is not None
        rss_bytes = watch.peak_rss_bytes or usage
        return Build(wall_s, stage_walls(lines, manifest), watch.peak_disk_bytes, rss_bytes, manifest, path.parent)

    def no_op_s(self, quants: Sequence[str], name: str) -> list[float]:
        """Wall times of a build that has nothing to do, the first left out."""
        say("building again, with nothing to do")
        argv = self.argv(quants, self.scratch / name)
        return [timed(argv) for _ in range(NO_OP_REPEATS + 1)][1:]


def main() -> None:
    """Measure, print, and exit as the limits hold."""
    args = parse_argv()
    scratch_in = REPO_DIR / "artifacts"
    scratch_in.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=scratch_in) as name:
        bench = Bench(args.model, args.quants, args.engine, Path(name))
        rows = measure(bench)
    if args.json:
        print(json.dumps({"rows": [asdict(row) | {"holds": row.holds} for row in rows]}, indent=2))
    else:
        print(table(rows))
    short = [row.what for row in rows if not row.holds]
    if short:
        print(f"over the limit: {', '.join(short)}", file=sys.stderr)
    sys.exit(1 if short else 0)


def parse_argv() -> argparse.Namespace:
    """The command line, checked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPO_DIR / "artifacts" / "demo" / DEMO_NAME, metavar="FOLDER")
    parser.add_argument("--quants", type=lambda text: tuple(text.split(",")), default=tuple(SIX_QUANTS.split(",")))
    parser.add_argument("--engine", choices=("docker", "local"), default="docker")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        cannot(f"{args.model} is not a model folder. Make the demo's first: make demo, or name one: --model FOLDER")
    return args


def measure(bench: Bench) -> list[Row]:
    """Every row of the table."""
    timed([*bench.argv(bench.quants[:1], bench.scratch / "none")[:3], "images", f"--engine={bench.engine}"])
    together = bench.build("together", bench.quants)
    no_op_s = bench.no_op_s(bench.quants, "together")
    bare = bare_tools(bench, together)
    alone = []
    for quant in bench.quants:
        alone.append(bench.build(quant, [quant]))
        shutil.rmtree(bench.scratch / quant)
    return [
        *stage_rows([together, *alone], bare), no_op_row(no_op_s), together_row(together, alone),
        disk_row(together), memory_row([together, *alone]),
    ]  # fmt: skip


# ---- one build, seen from outside ------------------------------------------------------------------


def timed_lines(process: subprocess.Popen[str]) -> list[tuple[float, str]]:
    """Every line of the process's stderr, each with when it came."""
    assert process.stderr is not None
    return [(time.monotonic(), line) for line in process.stderr]


def stage_walls(lines: Sequence[tuple[float, str]], manifest: Manifest) -> dict[str, float]:
    """Wall time of each stage: from the line before its own (the plan's last, or another stage's) to its own."""
    walls, before = {}, lines[0][0]
    for at, line in lines:
        label = line.partition("]")[0].removeprefix("[") if line.startswith("[") else ""
        if label in manifest.stages:
            walls[label] = at - before
        before = at
    return walls


def wait(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Exit code, and peak memory in bytes of the largest of it and the children it waited for."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def high_water_bytes(pid: int) -> int:
    """The most memory this process (without its children) has had in use so far; 0 where that is not told."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def disk_bytes(folder: Path) -> int:
    """What a folder takes on disk; a file with several names counts once."""
    blocks: dict[int, int] = {}
    for parent, _folders, names in os.walk(folder):
        for name in names:
            try:
                stat = (Path(parent) / name).lstat()
            except OSError:  # it is renamed or removed as we look
                continue
            blocks[stat.st_ino] = stat.st_blocks * 512
    return sum(blocks.values())


def timed(argv: Sequence[str]) -> float:
    """Wall time of a command that must succeed."""
    started = time.monotonic()
    done = subprocess.run(argv, cwd=REPO_DIR, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        cannot(f"{done.stderr[-2000:]}\n{' '.join(argv)} failed with exit code {done.returncode}.")
    return time.monotonic() - started


# ---- the bare tools --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bare:
    """Wall times in seconds of the tools alone, without the start of a container."""

    tool_s: dict[str, float]
    start_s: float


def bare_tools(bench: Bench, build: Build) -> Bare:
    """Run every tool of this build by itself, in the same image on the same files."""
    if bench.engine == "local":
        return Bare({}, 0.0)
    image = next(iter(build.manifest.stages.values())).ran_by["builder_image"]
    start_s = statistics.median(timed(docker_run(image, {}, ["true"])) for _ in range(REPEATS + 1))
    stages = {label: stage for label, stage in build.manifest.stages.items() if stage.argv and is_tool(stage)}
    tool_s = {}
    for label, stage in stages.items():
        say(f"running the bare tool of {label}")
        walls = [timed(docker_run(image, mounts(bench, build, label), stage.argv[0])) for _ in range(REPEATS)]
        tool_s[label] = statistics.median(walls) - start_s
    return Bare(tool_s, start_s)


def is_tool(stage: StageRecord) -> bool:
    """Whether the stage is one tool's run and little else; twin and verify ask a server, and twin makes a model."""
    return stage.request["stage"] in ("convert", "quantize")


def mounts(bench: Bench, build: Build, label: str) -> dict[Path, str]:
    """The folders that the stage of this label had, at the same places, with a fresh one to write to."""
    out = bench.scratch / "bare"
    shutil.rmtree(out, ignore_errors=True)
    (out / "files").mkdir(parents=True)
    source = bench.model.resolve() if label == "convert" else next((build.folder / "stages").glob("convert-*/files"))
    return {source: "/in/source:ro", out: "/out"}


def docker_run(image: str, folders: dict[Path, str], argv: Sequence[str]) -> list[str]:
    """The command that runs a tool as bare as it gets: no network, and the environment a stage gives its tools."""
    options = ["--rm", "--network=none", f"--user={os.getuid()}:{os.getgid()}", "--env=PYTHONPATH=", "--env=HOME=/tmp"]
    options += ["--env=HF_HUB_OFFLINE=1", *(f"--volume={folder}:{place}" for folder, place in folders.items())]
    return ["docker", "run", *options, image, *argv]


# ---- the table -------------------------------------------------------------------------------------


def stage_rows(builds: Sequence[Build], bare: Bare) -> list[Row]:
    """What each stage adds, median over the builds it ran in; last, for information, the start of a container."""
    rows = []
    for label in builds[0].manifest.stages:
        ran = [(b.stage_wall_s[label], b.manifest.stages[label]) for b in builds if label in b.stage_wall_s]
        rows.append(stage_row(label, ran, bare.tool_s.get(label)))
    start = [Row("container start", bare.start_s, None, "s", "counts as added")] if bare.start_s else []
    return [*rows, *start]


def stage_row(label: str, ran: Sequence[tuple[float, StageRecord]], tool_s: float | None) -> Row:
    """One stage: its wall time less the bare tool's, or less its own duration where there is no bare tool."""
    wall_s = statistics.median(wall for wall, _ in ran)
    if tool_s is None:
        tool_s = statistics.median(record.duration_s for _, record in ran)
        return Row(label, wall_s - tool_s, 1.0, "s added", f"{wall_s:.2f} s, of which {tool_s:.2f} s in the stage")
    return Row(label, wall_s - tool_s, 1.0, "s added", f"{wall_s:.2f} s, the bare tool {tool_s:.2f} s")


def no_op_row(walls_s: Sequence[float]) -> Row:
    """The build that has nothing to do."""
    detail = f"{min(walls_s):.2f} to {max(walls_s):.2f} s"
    return Row("no-op build", statistics.median(walls_s), 1.0, "s", detail)


def together_row(together: Build, alone: Sequence[Build]) -> Row:
    """One run against one run each; fewer quants than six share the conversion among fewer."""
    separate_s = sum(build.wall_s for build in alone)
    detail = f"{together.wall_s:.1f} s together, {separate_s:.1f} s in {len(alone)} builds"
    limit = 0.5 if len(alone) >= len(SIX_QUANTS.split(",")) else None
    return Row("quants together", together.wall_s / separate_s, limit, "x", detail)


def disk_row(build: Build) -> Row:
    """The most there ever was on disk, against what has to be there in the end."""
    stages = build.manifest.stages
    converted = sum(f.size_bytes for f in stages["convert"].outputs)
    quantized = [stage for stage in stages.values() if stage.request["stage"] == "quantize"]
    quants = sum(f.size_bytes for stage in quantized for f in stage.outputs)
    needed = converted + quants
    detail = f"{build.peak_disk_bytes / MB:.0f} MB, of which {converted / MB:.0f} converted, {quants / MB:.0f} quants"
    return Row("peak disk", build.peak_disk_bytes / needed, 1.02, "x", detail)


def memory_row(builds: Sequence[Build]) -> Row:
    """The orchestrator's own memory, the most in any build."""
    return Row("orchestrator memory", max(b.peak_rss_bytes for b in builds) / MB, 150.0, "MB", "peak of the process")


def table(rows: Sequence[Row]) -> str:
    """The rows in columns."""
    lines = [f"{'what':<22}{'measured':>10} {'':<8}{'limit':>7}  {'':<9}detail"]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:g}"
        verdict = "" if row.limit is None else "ok" if row.holds else "OVER"
        lines.append(f"{row.what:<22}{row.measured:>10.2f} {row.unit:<8}{limit:>7}  {verdict:<9}{row.detail}")
    return "\n".join(lines)


def say(text: str) -> None:
    """What is being done, for who waits."""
    print(f"… {text}", file=sys.stderr, flush=True)


def cannot(text: str) -> NoReturn:
    """Nothing can be measured, and why."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
