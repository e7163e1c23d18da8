#!/usr/bin/env python3
"""Measure what it costs to check what the stages of a build claim, against the whole build, in one run.

How to run:

    make demo                                          # once: it makes the model that is built again here
    .venv/bin/python scripts/bench_stage_checks.py     # a minute, 600 MB of disk below artifacts/, removed afterwards

    --model FOLDER   another model in Hugging Face format      --engine docker|local   (docker)
    --quants A,B,…   which quants, Q4_K_M by default           --json                  one object on stdout

What is measured:

    checks    seconds between the end of a stage and the moment it counts: its answer read and checked field by field,
              its files opened without following a link, hashed, synced to disk and moved, folders removed; all stages.
              At most 3 % of the build's wall time, plan and images apart. What a stage would sync and hash itself
              otherwise is counted too: there is no second build without checks to subtract.

Exit codes:  0 the limit holds · 1 it does not · 2 it cannot be measured
"""

# ruff: noqa: T201 (a script for people prints)
from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from quantyard.engines.registry import choose_engine  # noqa: E402
from quantyard.errors import QuantyardError  # noqa: E402
from quantyard.execution.runner import PlanRunner  # noqa: E402  (found only after the line above)
from quantyard.formats.finite_json import dump_finite_json  # noqa: E402
from quantyard.hub.client import HubAccess  # noqa: E402
from quantyard.paths import read_pins  # noqa: E402
from quantyard.plan.build import BuildOptions, make_build_plan  # noqa: E402
from quantyard.protocol.base import Progress, StageResult  # noqa: E402
from quantyard.quants.selection import parse_quants  # noqa: E402
from quantyard.requests import ImageSettings, RunEnvironment  # noqa: E402
from quantyard.sources.resolve import find_source  # noqa: E402
from quantyard.store.hash_cache import HashCache  # noqa: E402
from quantyard.store.stages import ModelStore  # noqa: E402
from quantyard.workflows.demo import DEMO_NAME  # noqa: E402

LIMIT = 0.03
CHECKS = (
    "quantyard.store.stages.ModelStore.finish", "quantyard.store.stages.ModelStore.take",
    "quantyard.engines.docker.read_engine_result",
    "quantyard.engines.local.read_engine_result",
)  # fmt: skip


@dataclass
class Clock:
    """Seconds spent in the checks; a check within another counts once."""

    spent_s: float = 0.0
    _depth: dict[int, int] = field(default_factory=dict)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""
        def timed(*args: Any, **kwargs: Any) -> Any:
            me, began = threading.get_ident(), time.perf_counter()
            self._depth[me] = self._depth.get(me, 0) + 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth[me] -= 1
                if self._depth[me] == 0:
                    self.spent_s += time.perf_counter() - began

        return timed


class Lines:
    """A reporter that writes what ended to stderr."""

    def begin(self, label: str, number: int, of: int) -> None:
        """Nothing."""

    def progress(self, label: str, progress: Progress) -> None:
        """Nothing."""

    def end(self, label: str, result: StageResult) -> None:
        """One line."""
        print(f"[{label}] {result.duration_s:.1f} s", file=sys.stderr)

    def fail(self, label: str, text: str) -> None:
        """One line."""
        print(f"{label}: {text}", file=sys.stderr)

    def note(self, text: str) -> None:
        """One line."""
        print(text, file=sys.stderr)


@contextmanager
def timing(clock: Clock) -> Iterator[None]:
    """Time the checks of whatever runs in this block."""
    with ExitStack() as stack:
        for name in CHECKS:
            module, _, attribute = name.replace(".ModelStore.", ":ModelStore.").rpartition(".")
            path, _, kind = module.partition(":")
            owner: Any = importlib.import_module(path)
            owner = getattr(owner, kind) if kind else owner
            stack.enter_context(mock.patch.object(owner, attribute, clock.around(getattr(owner, attribute))))
        yield


def build(args: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Build from nothing; the row of the table."""
    pins = read_pins(REPO_DIR / "versions.env")
    images = ImageSettings({"builder": f"{pins['LLAMA_CPP_IMAGE']}:{pins['LLAMA_CPP_TAG']}"}, None, {})
    engine, _ = choose_engine(args.engine, RunEnvironment(repo_dir=REPO_DIR), images)
    engine.prepare("builder", lambda text: print(text, file=sys.stderr))
    access, hashes = HubAccess(None, None), HashCache(store / "hashes.json")
    source = find_source(str(args.model), access, hashes, allow_pickle=False, gguf_file=None)
    options = BuildOptions(
        quants=parse_quants(args.quants), outtype="auto", allow_pickle=False, allow_requantize=False,
        allow_mismatch=(), threads=0, workers=4, endpoint=None,
    )
    runner, clock = (
        PlanRunner(make_build_plan(source, options), engine, ModelStore(store, source.model), REPO_DIR),
        Clock(),
    )
    with timing(clock):
        began = time.perf_counter()
        runner.run(Lines())
        whole_s = time.perf_counter() - began
    taken = (found for label in runner.ran for found in runner.outputs(label))
    size_bytes = sum(entry.size_bytes for entry in taken)
    return {
        "build_s": whole_s, "checks_s": clock.spent_s, "share": clock.spent_s / whole_s, "limit": LIMIT,
        "checked_bytes": size_bytes, "stages": len(runner.ran), "holds": clock.spent_s <= LIMIT * whole_s,
    }


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPO_DIR / "artifacts" / "demo" / DEMO_NAME)
    parser.add_argument("--engine", choices=("docker", "local"), default="docker")
    parser.add_argument("--quants", default="Q4_K_M")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        hint = "Make the demo's first: make demo, or name one: --model FOLDER"
        print(f"{args.model} is not a model folder. {hint}", file=sys.stderr)
        sys.exit(2)
    (REPO_DIR / "artifacts").mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=REPO_DIR / "artifacts", prefix=".bench-checks-") as folder:
            row = build(args, Path(folder))
    except QuantyardError as error:
        print(f"{error.message} {error.hint}", file=sys.stderr)
        sys.exit(2)
    print(dump_finite_json(row, indent=2) if args.json else text_of(row))
    sys.exit(0 if row["holds"] else 1)


def text_of(row: dict[str, Any]) -> str:
    """One line."""
    share = f"{100 * row['share']:.2f} % (limit {100 * LIMIT:.0f} %)"
    checked = f"{row['stages']} stages, {row['checked_bytes'] / 1e6:.0f} MB hashed"
    return f"checks {row['checks_s']:.2f} s of {row['build_s']:.1f} s, {share}, {checked}"


if __name__ == "__main__":
    main()
