#!/usr/bin/env python3
"""Measure how fast answers are generated: every figure a ratio within one run, same file, threads and machine.

How to run:

    make demo                                            # once: it makes the model that is measured
    scripts/setup-local.sh bench                         # once: .venv-bench
    .venv-bench/bin/python scripts/bench_generation.py   # about 6 minutes

    --gguf FILE       another model               --threads N   default: one per physical core
    --tool PATH       llama-batched-bench         default: the one on the PATH, else that of the image llama.cpp:full
    --only NAME,…     some of: plain, shared, batches      --turns N     of every side, default 3
    --json            one object on stdout

Run it on a quiet machine: llama.cpp's threads wait for each other, and beside another busy process every figure falls.
Sides of a ratio take turns, and the fastest turn of each counts: what else runs only ever adds time.

What is measured, and the limit of each:

    plain     tokens/s, prompts and answers together, against llama-batched-bench with the same prompt length, answer
              length and parallelism: at least 0.9 x. It draws nothing and decodes random tokens; ours choose each token
              from the logits, and count what opening the context takes too. That tool is another build of llama.cpp, so
              also against its loop on the library that ours uses: at least 0.9 x.
    shared    the same with a prompt that all sequences share (-pps, on a unified KV cache): at least 0.9 x.
    batches   answers of unequal length, counted without a clock: tokens of a batch while answers wait, against the
              slots: at least 0.95. Tokens decoded against prompts' prefix tree and answers: at most 1.02.

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
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

try:
    import numpy as np

    from eval.llama.context import BATCH_TOKENS, Context, ContextSettings
    from eval.llama.generator import Generator, Prompt
    from eval.llama.model import GgufModel
    from quantyard.hardware.machine import hardware_facts
    from scripts.bench_table import Row
except ImportError as error:
    print(f"{error}. Type: scripts/setup-local.sh bench; then run this with .venv-bench/bin/python", file=sys.stderr)
    sys.exit(2)

MODEL_NAME = "SmolLM2-135M-Instruct"
IMAGE = "ghcr.io/ggml-org/llama.cpp:full"
TOOL = "llama-batched-bench"


class Endless(GgufModel):
    """A model whose answers end at their limit alone, as those of the competitor do."""

    def ends_generation(self, token: int) -> bool:
        """Never."""
        del token
        return False


@dataclass(frozen=True)
class Work:
    """`n` sequences at once, each of `prompt` tokens and `answer` more; `shared`: all have the same prompt."""

    prompt: int
    answer: int
    n: int
    shared: bool = False

    @property
    def cells(self) -> int:
        """KV cells."""
        return (self.prompt if self.shared else self.n * self.prompt) + self.n * self.answer

    def __str__(self) -> str:
        return f"{self.n} at once, prompt {self.prompt}{' shared' if self.shared else ''}, answer {self.answer}"


@dataclass(frozen=True)
class Bench:
    """What every measurement gets."""

    gguf: Path
    model: GgufModel
    tool: Sequence[str]  # the command line of the competitor, up to its options
    threads: int
    turns: int


PLAIN = (Work(128, 64, 8), Work(128, 64, 16), Work(64, 64, 32))
SHARED = (Work(512, 32, 16, shared=True),)


def random_prompts(bench: Bench, work: Work) -> list[Prompt]:
    """Prompts of random tokens; one more is asked for than is decoded, since the last is never decoded."""
    random = np.random.default_rng(7)
    drawn = random.integers(0, bench.model.n_vocab, (work.n, work.prompt))
    rows = [drawn[0] if work.shared else row for row in drawn]
    return [Prompt(row.tolist(), work.answer + 1) for row in rows]


def ours(bench: Bench, work: Work) -> float:
    """Seconds of our generation."""
    prompts = random_prompts(bench, work)
    generator = Generator(bench.model, bench.threads, n_slots=work.n, n_cells=work.cells)
    started = time.perf_counter()
    generator.generate(prompts)
    return time.perf_counter() - started


def theirs(bench: Bench, work: Work) -> float:
    """Seconds of the competitor, as it reports them."""
    argv = [*bench.tool, "-c", str(work.cells + 256), "-b", "2048", "-ub", "512", "-npp", str(work.prompt), "-ntg",
            str(work.answer), "-npl", str(work.n), "-t", str(bench.threads), "-tb", str(bench.threads),
            "--output-format", "jsonl", *(["-pps", "-kvu"] if work.shared else [])]
    run = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=1800)
    lines = [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("{")]
    if run.returncode or not lines:
        print(f"{TOOL} fails: {run.stderr[-500:]}", file=sys.stderr)
        sys.exit(2)
    return float(json.loads(lines[-1])["t"])


def bare_loop(bench: Bench, work: Work) -> float:
    """Seconds of what the competitor does, on our library: prompts, then a random token of every sequence a step."""
    drawn = np.random.default_rng(7).integers(0, bench.model.n_vocab, work.cells).astype(np.int32)
    seqs = np.arange(work.n, dtype=np.int32)
    read = np.zeros(work.prompt, np.int32) if work.shared else np.repeat(seqs, work.prompt)
    depth = np.tile(np.arange(work.prompt, dtype=np.int32), 1 if work.shared else work.n)
    count = np.full_like(read, work.n if work.shared else 1)
    last = depth == work.prompt - 1
    with Context(bench.model, ContextSettings(work.cells, work.n, bench.threads)) as context:
        started = time.perf_counter()
        for part in (slice(at, at + BATCH_TOKENS) for at in range(0, len(read), BATCH_TOKENS)):
            context.decode(drawn[: len(read)][part], depth[part], last[part], read[part], count[part])
        every, ones = np.ones(work.n, np.bool_), np.ones_like(seqs)
        for step in range(work.answer):
            at = len(read) + step * work.n
            context.decode(drawn[at : at + work.n], np.full_like(seqs, work.prompt + step), every, seqs, ones)
        return time.perf_counter() - started


def against_batched_bench(bench: Bench, works: Sequence[Work]) -> list[Row]:
    """All sides take turns."""
    rows = []
    for work in works:
        sides = (ours, theirs, bare_loop)
        seconds = [[side(bench, work) for side in sides] for _ in range(bench.turns)]
        our_s, *others = map(min, zip(*seconds, strict=True))
        for name, their_s in zip((TOOL, "a bare loop"), others, strict=True):
            rates = f"{work.cells / our_s:.0f} against {work.cells / their_s:.0f} tokens/s of {name}"
            rows.append(Row(str(work), their_s / our_s, 0.9, rates))
    return rows


def unequal_answers(bench: Bench) -> list[Row]:
    """96 answers of 4 to 48 tokens after 100 shared ones and 20 of their own, on 16 slots of a tiny model."""
    from tests.tiny_gguf import write_tiny

    with tempfile.TemporaryDirectory() as folder:
        model = Endless.load(write_tiny(bench.gguf, Path(folder) / "tiny.gguf"))
    random = np.random.default_rng(7)
    drawn = random.integers(0, model.n_vocab, (97, 100)).tolist()
    prompts = [Prompt(drawn[0] + row[:20], int(random.integers(4, 49))) for row in drawn[1:]]
    generator, sizes = Generator(model, bench.threads, n_slots=16), list[tuple[int, int]]()
    own = Context.decode

    def counted(context: Context, tokens: Any, positions: Any, wanted: Any, *rest: Any) -> Any:
        sizes.append((len(tokens), int(np.count_nonzero(wanted))))
        return own(context, tokens, positions, wanted, *rest)

    Context.decode = counted  # type: ignore[method-assign]
    try:
        generator.generate(prompts)
    finally:
        Context.decode = own  # type: ignore[method-assign]
    least = 100 + 96 * 20 + sum(prompt.max_tokens - 1 for prompt in prompts)
    steps = [rows for _tokens, rows in sizes]
    while steps and steps[-1] < 16:  # no answer waits any more
        steps.pop()
    return [
        Row("sequences in a batch, of 16 slots", statistics.fmean(steps) / 16, 0.95, f"{len(sizes)} batches"),
        Row("tokens decoded, of those that must be", generator.n_tokens_decoded / least, 1.02,
            f"{generator.n_tokens_decoded} of {least}", at_most=True),
    ]


# To add a measurement: add a function that returns rows, and name it here.
MEASUREMENTS: dict[str, Callable[[Bench], list[Row]]] = {
    "plain": lambda bench: against_batched_bench(bench, PLAIN),
    "shared": lambda bench: against_batched_bench(bench, SHARED),
    "batches": unequal_answers,
}


def main() -> NoReturn:
    """Run what was asked for and print the table."""
    args = _arguments()
    names = args.only.split(",") if args.only else list(MEASUREMENTS)
    bench, rows = _bench(args), list[Row]()
    load = os.getloadavg()[0]
    for name in names:
        print(f"{name} …", file=sys.stderr)
        rows += MEASUREMENTS[name](bench)
    facts = hardware_facts(bench.threads)
    if args.json:
        told = [asdict(row) | {"holds": row.holds} for row in rows]
        print(json.dumps({"hardware": facts, "load": load, "rows": told}, indent=1))
    else:
        print(f"{bench.gguf.name}, {bench.threads} threads, load {load:.1f} at the start")
        print(*map(Row.line, rows), sep="\n")
    sys.exit(0 if all(row.holds for row in rows) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--tool", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if unknown := [name for name in args.only.split(",") if name and name not in MEASUREMENTS]:
        parser.error(f"--only does not know {', '.join(unknown)}; it knows {', '.join(MEASUREMENTS)}")
    return args


def _bench(args: argparse.Namespace) -> Bench:
    folder = REPO_DIR / "artifacts" / "local" / MODEL_NAME
    files = [args.gguf] if args.gguf else sorted(folder.glob(f"*/{MODEL_NAME}-Q4_K_M.gguf"))
    if not files:
        print("The demo's model is not here. Type: make demo", file=sys.stderr)
        sys.exit(2)
    gguf = files[-1].resolve()
    threads = args.threads or int(str(hardware_facts(0)["physical_cores"]))
    return Bench(gguf, Endless.load(gguf), _tool(args.tool, gguf), threads, args.turns)


def _tool(asked: str, gguf: Path) -> list[str]:
    if path := asked or shutil.which(TOOL):
        return [path, "-m", str(gguf)]
    if not shutil.which("docker"):
        print(f"There is no {TOOL} on the PATH, and no docker. Type: --tool PATH", file=sys.stderr)
        sys.exit(2)
    mount = f"type=bind,source={gguf},target=/model.gguf,readonly"
    return ["docker", "run", "--rm", "--network", "none", "--mount", mount, "--entrypoint", f"/app/{TOOL}", IMAGE,
            "-m", "/model.gguf"]


if __name__ == "__main__":
    main()
