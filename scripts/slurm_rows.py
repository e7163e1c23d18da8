# ruff: noqa: INP001 (a helper of scripts, not a package)
"""Rows of bench_cluster.py: what a job of an idle Slurm adds to a stage, and a run on it with nothing to do.

The stages of a tiny model run one after another, first as processes of this machine, then as jobs of a Slurm of one
node on it. What Slurm adds is the difference: submitting, starting, a second Python, inputs to the node and outputs
back. Needs root and Slurm's programs, or SLURM_CONF of a cluster that is up.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from quantyard import cli
from quantyard.batch.batch_engine import BatchEngine
from quantyard.batch.slurm import SlurmQueue
from quantyard.engines.local import LocalEngine
from quantyard.paths import REPO_DIR
from quantyard.workflows.demo import DEMO_NAME
from scripts.bench_build import cannot, say
from tests.tiny_model import write_tiny_model

CLUSTER: Final = REPO_DIR / "scripts" / "cluster-debian.sh"
SUITE: Final = """
tasks: []
needs_network: false
divergence: {n_chunks: 2, n_ctx: 128}
domains: {tokens: 64, long_documents: 0}
speed: {prompt_tokens: 32, generated_tokens: 8, repeats: 2}
"""
REPEATS: Final = 3  # of a run with nothing to do
MOST_ADDED_S, MOST_IDLE_S = 3.0, 2.0


def added_seconds(folder: Path) -> dict[str, float]:
    """Seconds that a stage took longer as a job, by its label; "nothing to do": those of a whole run."""
    with slurm_up() as conf:
        model = write_tiny_model(folder / "tiny", demo_folder())
        (folder / "own.yaml").write_text(SUITE)
        asked = {"MODEL": str(model), "QUANT": "Q8_0", "SUITE": str(folder / "own.yaml"), "PARITY": "off"}
        say("the stages of a tiny model as processes of this machine")
        here = stage_seconds(LocalEngine, asked | {"ENGINE": "local", "ARTIFACTS": str(folder / "here")})
        say("… and as jobs")
        there = asked | {"ENGINE": "slurm", "ARTIFACTS": str(folder / "there"), "SCRATCH": str(folder / "scratch")}
        there["SLURM_CONF"] = conf
        jobs = stage_seconds(BatchEngine, there)
        idle = [command_seconds(there) for _ in range(REPEATS)]
    return {label: jobs[label] - here[label] for label in here} | {"nothing to do": statistics.median(idle)}


def stage_seconds(engine: type, asked: Mapping[str, str]) -> dict[str, float]:
    """Seconds of each stage of an evaluation in this process, one at a time, by label."""
    took, run, capacity = dict[str, float](), engine.run, SlurmQueue.capacity
    before, said = dict(os.environ), io.StringIO()

    def timed(self: Any, spec: Any, *rest: Any) -> Any:
        began = time.monotonic()
        result = run(self, spec, *rest)
        took[spec.label] = time.monotonic() - began
        return result

    engine.run, os.environ["JSON"] = timed, "1"
    SlurmQueue.capacity = lambda self: replace(capacity(self), concurrent_stages=1, nodes=1)  # type: ignore[method-assign]
    os.environ.update(asked)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = cli.main(["eval"])
    except SystemExit as error:
        code = error.code
    finally:
        engine.run, SlurmQueue.capacity = run, capacity  # type: ignore[method-assign]
        os.environ.clear()
        os.environ.update(before)
    if code:
        cannot(f"the evaluation with ENGINE={asked['ENGINE']} ended with {code}: {said.getvalue()[-2000:]}")
    return took


def command_seconds(asked: Mapping[str, str]) -> float:
    """Seconds of a run that finds everything done."""
    began = time.monotonic()
    argv = [sys.executable, "-m", "quantyard", "eval"]
    subprocess.run(argv, env=os.environ | asked, cwd=REPO_DIR, capture_output=True, check=True)
    return time.monotonic() - began


def demo_folder() -> Path:
    """The demo model in Hugging Face format, for its tokenizer."""
    folder = REPO_DIR / "artifacts" / "demo" / DEMO_NAME
    if not (folder / "tokenizer.json").exists():
        cannot(f"there is no {DEMO_NAME} below artifacts/. Type: make demo")
    return folder


@contextmanager
def slurm_up() -> Iterator[str]:
    """The configuration of a cluster that is up, or of one of a node that is brought up for this."""
    if conf := os.environ.get("SLURM_CONF"):
        yield conf
        return
    run: Callable[..., Any] = lambda verb: subprocess.run(  # noqa: E731
        [str(CLUSTER), verb], env=os.environ | {"NODES": "1"}, capture_output=True, text=True, check=False
    )
    up = run("up")
    if up.returncode != 0:
        run("down")
        cannot(f"no Slurm: {up.stderr[-500:]}")
    try:
        yield up.stdout.strip().rpartition("=")[2]
    finally:
        run("down")
