"""`make matrix` through the command line, on an engine that writes what stages would."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from quantyard import cli
from quantyard.cli.render import evaluation as eval_summary
from quantyard.cli.render import matrix as matrix_summary
from quantyard.formatting.numbers import format_perplexity
from quantyard.paths import REPO_DIR
from quantyard.plan.calibration_inputs import OUR_TEXT
from quantyard.protocol.base import ExitCode
from quantyard.requests import BuildRequest
from quantyard.sources.resolve import Source
from quantyard.workflows import matrix as matrix_workflow
from quantyard.workflows import planning
from tests.evaluations import LARGE, simulated
from tests.gguf_files import gguf
from tests.unit.fake_engine import FakeEngine, fails

pytestmark = pytest.mark.commands

Run = Callable[..., int]
_PLAIN = ("matrix", "--model=x", "--suite=smoke", "--imatrix=none")


@pytest.fixture
def run(local_source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Run:
    """Runs `matrix` on this engine; returns its exit code."""
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    # The fake measures no files.
    monkeypatch.setattr(matrix_workflow, "write_release_report", lambda *_: tmp_path / "report.html")

    def go(engine: FakeEngine, *argv: str) -> int:
        monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
        with pytest.raises(SystemExit) as ended:
            cli.main([*_PLAIN, f"--artifacts={tmp_path / 'artifacts'}", *argv])
        return int(ended.value.code or 0)

    return go


def test_all_quants_are_made_of_one_conversion_and_measured_beside_one_baseline(run: Run) -> None:
    engine = FakeEngine()
    assert run(engine, "--quants=Q4_K_M,Q8_0") == 0
    assert engine.ran.count("convert") == 1 and engine.ran.count("evaluate BF16") == 1
    assert {"quantize Q4_K_M", "quantize Q8_0", "divergence BF16, Q4_K_M, Q8_0"} <= set(engine.ran)


def test_without_quants_there_is_one_of_each_size(run: Run) -> None:
    engine = FakeEngine()
    assert run(engine) == 0
    made = sorted(label.split()[1] for label in engine.ran if label.startswith("quantize"))
    assert made == ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]


def test_a_failed_quant_is_named_with_its_reason_and_its_exit_code_and_the_others_are_there(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = FakeEngine(behaviours={"quantize Q4_K_M": fails(ExitCode.RESOURCES)})
    assert run(engine, "--quants=Q4_K_M,Q8_0", "--json") == ExitCode.RESOURCES
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert [file["quant"] for file in said["files"]] == ["Q8_0"]
    assert said["failed"][0]["stage"] == "quantize Q4_K_M" and "It was told to fail" in said["failed"][0]["message"]
    assert "1 failed" in err


def test_where_every_quant_fails_the_first_reason_is_the_commands(run: Run) -> None:
    bad = {f"quantize {quant}": fails(ExitCode.UNSUPPORTED_MODEL) for quant in ("Q4_K_M", "Q8_0")}
    assert run(FakeEngine(behaviours=bad), "--quants=Q4_K_M,Q8_0") == ExitCode.UNSUPPORTED_MODEL


def test_an_unknown_quant_is_refused_before_anything_runs(run: Run) -> None:
    engine = FakeEngine()
    assert run(engine, "--quants=Q4_K_M,Q9_X") == ExitCode.BAD_REQUEST
    assert engine.ran == []


# ---- what it ends with -------------------------------------------------------------------------------


def test_the_end_names_the_front_what_to_take_and_where_everything_is(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(FakeEngine(), "--quants=Q4_K_M,Q8_0") == 0
    out, err = capsys.readouterr()
    assert out.count("●") == 2, "both files are alike here, so neither beats the other"
    assert "Front        Q4_K_M, Q8_0" in out
    assert "2 files built, verified and measured" in err
    assert "make choose MODEL=x RAM=8GiB MIN_TPS=20" in err
    for name in ("report.html", "README.md", "report.md", "manifest.json"):
        assert name in err


def test_the_end_tells_which_files_an_importance_matrix_made(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = tmp_path / "mine.gguf"
    given.write_bytes(gguf({"general.type": "imatrix"}, []))
    assert run(FakeEngine(), "--quants=Q4_K_M,Q8_0", f"--imatrix={given}") == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Imatrix"))
    assert line.endswith("tiny.imatrix.gguf, for Q4_K_M")


def test_where_several_quants_fail_and_nothing_is_left_each_reason_is_told(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {f"quantize {quant}": fails(ExitCode.UNSUPPORTED_MODEL) for quant in ("Q4_K_M", "Q8_0")}
    run(FakeEngine(behaviours=bad), "--quants=Q4_K_M,Q8_0")
    err = capsys.readouterr().err
    assert "2 failed:" in err and "the others are done" not in err
    assert "quantize Q4_K_M: " in err and "quantize Q8_0: " in err


def test_limits_make_another_suite_and_the_page_is_of_that_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[BuildRequest] = []
    page = tmp_path / "r.html"
    monkeypatch.setattr(matrix_workflow, "write_release_report", lambda request, *_: asked.append(request) or page)
    assert run(FakeEngine(), "--quants=Q8_0", "--limit=10") == 0
    (request,) = asked
    assert request.measure is not None
    assert request.measure.suite.startswith("smoke") and request.measure.suite != "smoke"


def test_the_table_marks_the_front_and_the_lines_below_tell_what_beats_the_others() -> None:
    report = simulated(LARGE, title="Lagoon", n_params=1.1e9, n_tasks=2)
    out = Console(width=200, record=True, file=io.StringIO())
    out.print(eval_summary.terminal_measured_files(report))
    out.print(matrix_summary.terminal_pareto_front(report), soft_wrap=True)
    said = out.export_text()
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines if line.endswith("○")] == ["Q4_0"]
    assert sum(line.endswith("●") for line in lines) == len(LARGE) - 2
    assert "Q4_0         beaten by IQ4_XS: 4.5 % smaller, mean KLD 0.0410 against 0.0580, 34.2 against 32.7" in said
    (front,) = (line for line in lines if line.startswith("Front"))
    assert "Q4_0" not in front and "IQ4_XS" in front


@pytest.mark.parametrize(("width", "is_table"), [(200, True), (120, True), (100, False), (80, False), (60, False)])
def test_a_table_loses_nothing_on_a_narrow_terminal(width: int, is_table: bool) -> None:
    report = simulated(LARGE, title="Lagoon", n_params=1.1e9, n_tasks=2)
    out = Console(width=width, record=True, file=io.StringIO())
    out.print(eval_summary.terminal_measured_files(report))
    lines = out.export_text().splitlines()
    named = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert named == [*["file"] * is_table, *(label for label, *_ in sorted(LARGE, key=_by_bits))]
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    words = " ".join(lines).split()
    for found in report.measurements:
        assert found.divergence and found.speed
        assert {format_perplexity(found.divergence.perplexity.value), "MiB", "tokens/s"} <= set(words)


def _by_bits(row: tuple[str, float, float]) -> float:
    return -row[1]


def test_a_file_alone_beside_its_baseline_has_no_mark() -> None:
    report = simulated(LARGE[:2], title="Lagoon", n_params=1.1e9, n_tasks=2)
    assert "front" not in eval_summary.terminal_measured_files(report).columns


def test_where_every_quant_fails_the_baseline_is_not_measured_for_nothing(run: Run) -> None:
    bad = {f"quantize {quant}": fails(ExitCode.BAD_REQUEST) for quant in ("Q4_K_M", "Q8_0")}
    engine = FakeEngine(behaviours=bad)
    assert run(engine, "--quants=Q4_K_M,Q8_0") == ExitCode.BAD_REQUEST
    assert [label for label in engine.ran if label.split()[0] in ("evaluate", "divergence", "speed", "report")] == []


@pytest.mark.parametrize(("place", "refused"), [("calibration.txt", False), ("tasks/more.txt", True)])
def test_only_what_a_suite_reads_may_not_be_calibrated_on(
    place: str, refused: bool, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(REPO_DIR / "docs" / "examples" / "own-questions", tmp_path / "suite")
    shutil.copy(OUR_TEXT, folder / place)  # beside the suite there may be anything, a store too
    run(FakeEngine(), f"--suite={folder / 'suite.yaml'}", "--imatrix=auto", "--quants=Q4_K_M")
    assert ("shares words with the evaluation" in capsys.readouterr().err) is refused
