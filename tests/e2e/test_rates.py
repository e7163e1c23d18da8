"""`make rates` with the real engine: the smaller of its two models, and what a plan knows afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantyard import cli
from quantyard.forecast.benchmark import TRIALS
from quantyard.forecast.samples import read_forecast_book
from tests.conftest import run_json

QUESTIONS = 192  # of the suite `smoke`
pytestmark = pytest.mark.alone  # it measures how quick this machine is


@pytest.fixture
def own_environment() -> Iterator[None]:
    """A command tells its own process of certificates and proxies."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("own_environment")
def test_a_machine_that_was_timed_foresees_every_stage_of_a_matrix(
    eval_image: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "MODEL": str(tiny_model), "QUANTS": "Q4_K_M,Q8_0", "SUITE": "smoke", "ENGINE": "docker",
        "ARTIFACTS": str(tmp_path),
    }  # fmt: skip
    assert run_json("plan", **asked)["seconds"] is None
    monkeypatch.setattr("quantyard.workflows.rates.TRIALS", TRIALS[:1])
    with pytest.raises(SystemExit) as ended:
        cli.main(["rates", "--engine=docker", f"--artifacts={tmp_path}"])
    assert ended.value.code == 0
    samples = read_forecast_book(tmp_path).samples
    assert {sample.asked for sample in samples if sample.kind == "evaluate"} == {QUESTIONS}
    assert not list(tmp_path.glob(".rates-*")), "nothing of it stays"
    plan = run_json("plan", **asked)
    assert plan["time_not_known"] == [] and all(stage["seconds"] > 0 for stage in plan["stages"])
