"""Every step of the workflow that users copy, but its installation and its publishing, on a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import NO_TWIN
from tests.e2e.conftest import Measured
from tests.github_workflow import Job

pytestmark = pytest.mark.slow


def test_the_job_measures_gates_and_reports_a_real_model(
    some_engine: str, measured_demo: Callable[[str], Measured], tmp_path: Path
) -> None:
    asked = measured_demo(some_engine).asked
    (tmp_path / "gate.yaml").write_text("defaults: {max_mean_kld: 0.5}\n")
    kept = {key: asked[key] for key in ("MODEL", "QUANT", "SUITE", "ENGINE", "ARTIFACTS")} | {"GATE": "gate.yaml"}
    lines = [f"{key.lower()} = {json.dumps(value)}\n" for key, value in kept.items()]
    (tmp_path / "quantyard.toml").write_text("".join(lines))
    job = Job(tmp_path, dict(NO_TWIN))
    for name in ("Plan", "Measure", "Gate", "Report", "End as the gate does"):
        done = job.run(name)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    assert job.outputs["gate.code"] == "0"
    assert "<html" in (tmp_path / "report" / "report.html").read_text()
    assert json.loads((tmp_path / "report" / "gate.json").read_text())["gate"]["outcome"] == "passed"
