"""What the tests of the whole way share: the demo model, measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from quantyard.protocol.measurements import EvalReport
from tests.conftest import Demo, made_once, run_json

EXAMPLE = REPO_DIR / "docs" / "examples" / "own-questions"
# Enough of everything to see that it is right.
LITTLE = "divergence: {n_chunks: 2}\nspeed: {repeats: 2, prompt_tokens: 64, generated_tokens: 8}\n"


@dataclass(frozen=True)
class Measured:
    """One run of `eval`, and how to type it again."""

    asked: dict[str, str]
    made: dict[str, Any]

    @property
    def report(self) -> EvalReport:
        return EvalReport.model_validate(self.made["report"])


def write_example(folder: Path, little: str = LITTLE) -> Path:
    """The suite of the documentation's worked example: its tasks, and a little of the rest."""
    shutil.copytree(EXAMPLE, folder)
    suite = folder / "suite.yaml"
    suite.write_text(suite.read_text().split("divergence:")[0] + little)
    return suite


@pytest.fixture(scope="session")
def measured_demo(built_demo: Callable[[str], Demo], run_folder: Path) -> Callable[[str], Measured]:
    """Q4_K_M beside its baseline on an engine, once per test run; the conversion is lent."""

    @cache
    def measure(engine: str) -> Measured:
        demo, folder = built_demo(engine), run_folder / f"eval-{engine}"
        asked = {
            "MODEL": str(demo.model), "QUANT": "Q4_K_M", "SUITE": str(folder / "suite" / "suite.yaml"),
            "ENGINE": engine, "ARTIFACTS": str(folder / "artifacts"),
        }

        def evaluate() -> dict[str, Any]:
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            write_example(folder / "suite")
            demo.lend(folder / "artifacts", "convert")
            return run_json("eval", **asked)

        return Measured(asked, made_once(run_folder, f"eval-{engine}", evaluate))

    return measure
