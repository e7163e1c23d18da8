"""The demo model measured against its baseline, on both engines, with the worked example of the documentation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quantyard.paths import REPO_DIR
from quantyard.store.manifest import read_manifest
from tests.conftest import lend, run, run_here, run_json, start
from tests.e2e.conftest import Measured, write_example

STAGES = [  # the conversion was there
    "quantize Q4_K_M", "verify Q4_K_M", "evaluate BF16", "evaluate Q4_K_M", "divergence BF16",
    "divergence Q4_K_M", "speed BF16", "speed Q4_K_M", "report",
]


@pytest.fixture
def measured(engine: str, measured_demo: Callable[[str], Measured]) -> Measured:
    """The example's tasks, a little text and a little speed."""
    return measured_demo(engine)


def test_one_command_builds_and_measures_the_quant_beside_its_baseline(measured: Measured) -> None:
    assert measured.made["ran"] == STAGES
    baseline, quant = measured.report.measurements
    assert (baseline.file.label, quant.file.label) == ("BF16", "Q4_K_M")
    assert quant.file.size_bytes < baseline.file.size_bytes and quant.file.sha256
    assert {c.task for c in quant.comparisons} == {"shop_questions", "shop_orders"}
    assert all(c.verdict for c in quant.comparisons) and not baseline.comparisons


def test_the_measurement_checked_itself_on_both_files(measured: Measured) -> None:
    for measurement in measured.report.measurements:
        check = measurement.self_check
        assert check is not None and check.known_answers_right >= 12
        assert check.packed_difference <= 1.5 * check.noise and check.rolling_difference < 1e-3


def test_divergence_and_speed_are_in_the_report(measured: Measured) -> None:
    baseline, quant = measured.report.measurements
    assert baseline.divergence is not None and baseline.divergence.mean_kld is None
    assert quant.divergence is not None and quant.divergence.mean_kld is not None
    assert 0 < quant.divergence.mean_kld.value < 1
    for measurement in (baseline, quant):
        assert measurement.speed is not None and measurement.speed.generated_tokens_per_s > 0
        assert measurement.speed.peak_memory_bytes > measurement.file.size_bytes / 2


def test_report_plots_and_lm_evals_own_results_are_kept(measured: Measured) -> None:
    folder = Path(measured.made["report_folder"])
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"report.json", "report.md", "plots/accuracy-light.svg", "plots/divergence-dark.png"} <= files
    stages = Path(measured.made["manifest"]).parent / "stages"
    results = [json.loads(path.read_text()) for path in stages.glob("evaluate-*/files/*/*/results_*.json")]
    assert {name for result in results for name in result["results"]} == {"shop_questions", "shop_orders"}
    assert list(stages.glob("evaluate-*/files/*/*/samples_*.jsonl"))


def test_the_manifest_holds_the_report(measured: Measured) -> None:
    manifest = read_manifest(Path(measured.made["manifest"]))
    assert manifest is not None and manifest.evaluations[measured.made["suite"]] == measured.report


def test_the_same_command_again_measures_nothing(measured: Measured) -> None:
    assert run_json("eval", **measured.asked)["ran"] == []


def test_another_margin_draws_the_report_again_and_nothing_else(measured: Measured) -> None:
    suite = Path(measured.asked["SUITE"])
    text = suite.read_text()
    suite.write_text(text + "margin: 0.05\n")
    try:
        assert run_json("eval", **measured.asked)["ran"] == ["report"]
    finally:
        suite.write_text(text)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_task_it_was_killed_in(measured: Measured) -> None:
    again = measured.asked | {"LIMIT": "9"}  # other questions, so other stages, of files that are built already
    stages = Path(measured.made["manifest"]).parent / "stages"
    before = set(stages.glob("*evaluate-BF16-*"))
    process = start("eval", **again)
    try:
        task, asked_at = _first_finished_task(stages, before)
    finally:
        process.kill()
        process.communicate()
    made = run_json("eval", **again)
    assert "evaluate Q4_K_M" in made["ran"] and "report" in made["ran"]
    (kept,) = (path for path in stages.glob(f"evaluate-BF16-*/files/{task}/entry.json")
               if path.parents[2] not in before)
    assert kept.stat().st_mtime_ns == asked_at, "a task that was finished is not asked again"


def _first_finished_task(stages: Path, before: set[Path]) -> tuple[str, int]:
    """Name and time of the first task that a new evaluation of the baseline finishes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in set(stages.glob("*evaluate-BF16-*")) - before:
            for path in folder.rglob("entry.json"):
                if not any(part.startswith(".shop") for part in path.parts):
                    return path.parent.name, path.stat().st_mtime_ns
        time.sleep(0.02)
    raise AssertionError("no task was finished within 120 s")


def test_a_task_with_a_typo_ends_it_before_anything_is_converted(
    engine: str, demo_model: Path, tmp_path: Path
) -> None:
    asked = {"MODEL": str(demo_model), "ENGINE": engine, "ARTIFACTS": str(tmp_path), "SUITE": "smoke"}
    done = run("eval", TASKS="smoke_questons", **asked)
    assert done.returncode == 2
    assert "Did you mean 'smoke_questions'" in done.stderr
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_suite_that_is_none_of_ours_names_the_nearest(demo_model: Path) -> None:
    done = run("eval", MODEL=str(demo_model), SUITE="smok", ENGINE="local")
    assert done.returncode == 2 and "Did you mean 'smoke'" in done.stderr


@pytest.mark.usefixtures("demo_model")
def test_the_demo_ends_with_an_evaluation_of_its_files(
    some_engine: str, measured_demo: Callable[[str], Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(measured_demo(some_engine).asked["ARTIFACTS"])
    lend(before, REPO_DIR / "artifacts", "evaluate", "divergence", "speed")  # of the same suite; Q8_0 is left
    monkeypatch.setattr("quantyard.workflows.demo._SUITE", str(write_example(tmp_path / "suite")))
    done = run_here("demo", ENGINE=some_engine, JSON="1")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert [m["file"]["label"] for m in made["report"]["measurements"]] == ["BF16", "Q4_K_M", "Q8_0"]


@pytest.mark.slow
@pytest.mark.usefixtures("demo_model")
def test_the_demo_as_it_is_typed_ends_with_the_smoke_evaluation(some_engine: str) -> None:
    made = run_json("demo", ENGINE=some_engine)
    labels = [m["file"]["label"] for m in made["report"]["measurements"]]
    assert labels == ["BF16", "Q4_K_M", "Q8_0"] and made["suite"] == "smoke"
