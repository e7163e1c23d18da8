"""The command line: data on stdout, words on stderr, and the right exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quantyard import cli
from quantyard.cli.commands import MEASURING
from quantyard.cli.render.evaluation import terminal_measured_tasks
from quantyard.plan import evaluation
from quantyard.plan.measuring_steps import MeasureOptions
from quantyard.protocol.evaluation import Runtime, Suite, TaskEntry
from quantyard.protocol.exit_codes import Answer
from quantyard.protocol.measurements import EvalReport
from quantyard.quants.catalog import QUANTS
from quantyard.requests import BuildRequest, MeasureRequest
from quantyard.sources.resolve import Source
from quantyard.workflows import doctor, planning
from quantyard.workflows.doctor import DoctorFinding
from tests.unit.fake_engine import FakeEngine, keeps_contract


def _run(monkeypatch: pytest.MonkeyPatch, *argv: str, fault: Exception | None = None) -> int:
    for name in ("EXTRA_CA", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)  # with one set, the command would set others for this process
    if fault is not None:

        def broken(*_args: Any) -> None:
            raise fault

        monkeypatch.setattr(planning, "_source_of_request", broken)
        monkeypatch.setattr(planning, "choose_engine", lambda *_: (None, ""))
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    return int(ended.value.code or 0)


def test_quants_lists_every_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "quants") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [quant.name for quant in QUANTS]


def test_a_list_is_searched_and_shows_notes_of_what_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "quants", "--find=q4_k") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert {"Q4_K_M", "Q4_K_S"} <= set(names) and "Q8_0" not in names
    _run(monkeypatch, "models")
    every = capsys.readouterr().out.splitlines()
    assert not [line for line in every if line.startswith("    ")]
    _run(monkeypatch, "models", "--find=gemma-3-1b")
    found = capsys.readouterr().out.splitlines()
    assert found[0].startswith("gemma-3-1b-it ") and found[1].startswith("    Q8_0") and len(found) < len(every)
    assert _run(monkeypatch, "models", "--find=zebra") == 2
    assert "No model with a short name holds 'zebra'." in capsys.readouterr().err


def test_json_is_one_object_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "quants", "--json") == 0
    out = json.loads(capsys.readouterr().out)
    assert {quant["name"] for quant in out["quants"]} == {quant.name for quant in QUANTS}


def test_an_error_is_json_too_when_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "build", "--json", "--engine=local", "--model=") == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["exit_code"] == 2
    assert "MODEL is not given" in captured.err


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (OSError(28, "No space left on device"), 5, "The disk is full"),
        (RuntimeError("surprise"), 70, "please report it"),
    ],
)
def test_what_nobody_foresaw_still_ends_with_the_right_code_and_a_sentence(
    fault: Exception, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "build", "--model=org/name", fault=fault) == code
    assert says in capsys.readouterr().err


def test_an_unknown_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, "bulid") == 2


# ---- eval, on the fake engine ------------------------------------------------------------------------

Command = Callable[..., int]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, local_source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command on a local model with the fake engine; suites are of one task."""

    def options(_request: BuildRequest, measure: MeasureRequest) -> MeasureOptions:
        suite = Suite(name=Path(measure.suite).stem, tasks=(TaskEntry(task="arc_easy"),))
        return MeasureOptions(suite=suite, runtime=Runtime(), baseline=measure.baseline)

    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (FakeEngine(), "asked for"))
    monkeypatch.setattr(evaluation, "plan_measure_options", options)

    def run(*argv: str) -> int:
        capsys.readouterr()
        return _run(monkeypatch, *argv, "--model=tiny", f"--artifacts={tmp_path / 'artifacts'}")

    return run


def test_eval_ends_with_a_table_of_the_files_and_one_of_the_tasks(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("eval", "--quant=Q4_K_M") == 0
    captured = capsys.readouterr()
    files, tasks = (part.splitlines() for part in captured.out.split("\n\n"))
    assert files[1].split()[:3] == ["BF16", "(baseline)", "105"]
    speeds = ("812 tokens/s", "61.2 tokens/s")
    for figure in ("105 MB", "6.17", "21.00", "+5.00 %", "0.0312", "91.3 %", *speeds, "300 MiB"):
        assert figure in files[2], figure
    assert tasks[1].split()[:4] == ["Q4_K_M", "arc_easy", "acc", "200"] and "too few questions: 3,100" in tasks[1]
    assert " −1.5 " in tasks[1] and "−1.50 %" in tasks[2], "the change of a perplexity is relative"
    assert "report.md" in captured.err and "1 in " in captured.err


def test_on_a_narrow_terminal_no_value_of_a_task_is_cut(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("eval", "--quant=Q4_K_M", "--json")
    report = EvalReport.model_validate(json.loads(capsys.readouterr().out)["report"])
    out = Console(width=80, record=True, file=io.StringIO())
    out.print(terminal_measured_tasks(report))
    told = out.export_text()
    assert max(map(len, told.splitlines())) <= 80
    assert told.splitlines()[0] == "Q4_K_M  arc_easy  acc" and "n 200 · baseline 47.5 % · value 46.0 %" in told
    assert "Δ −1.5 · 95 % interval" in told and "too few questions: 3,100 would do" in told


def test_eval_takes_the_suite_quick_unless_told_otherwise(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("eval")
    assert "Q4_K_M beside BF16, suite quick" in capsys.readouterr().err
    command("eval", "--suite=mine.yaml", "--baseline=Q8_0")
    assert "Q4_K_M beside Q8_0, suite mine" in capsys.readouterr().err


def test_a_build_serves_its_files_only_where_nothing_is_served_yet(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def served() -> list[str]:
        return sorted(path.name for path in (tmp_path / "artifacts" / "served").glob("*.gguf"))

    command("build", "--quant=Q8_0")
    first = served()
    assert len(first) == 1 and first[0].endswith("Q8_0.gguf") and "make serve" not in capsys.readouterr().err
    command("build", "--quant=Q4_K_M")
    said = capsys.readouterr().err
    assert served() == first and "make serve MODEL=tiny QUANT=Q4_K_M" in said
    command("eval", "--quant=Q8_0")
    assert served() == first and "make serve" not in capsys.readouterr().err


@pytest.mark.commands
def test_without_quant_what_was_built_is_measured_and_tested(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("build", "--quant=Q8_0,Q4_K_M")
    command("eval")
    assert "Q8_0, Q4_K_M beside BF16" in capsys.readouterr().err
    command("plan", "--suite=quick")
    assert "Q8_0, Q4_K_M beside BF16" in capsys.readouterr().out
    command("contract", "--json")
    assert len(json.loads(capsys.readouterr().out)["contracts"]) == 2


def test_eval_as_json_is_one_object_with_the_whole_report(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("eval", "--json") == 0
    out = json.loads(capsys.readouterr().out)
    report = EvalReport.model_validate(out["report"])
    assert [m.file.label for m in report.measurements] == ["BF16", "Q4_K_M"]
    assert (out["suite"], out["baseline"]) == ("quick", "BF16")
    assert all(Path(path).is_file() for path in (*out["report_files"], out["manifest"], out["files"][0]["path"]))
    assert "evaluate Q4_K_M" in out["ran"]
    command("eval", "--json")
    again = json.loads(capsys.readouterr().out)
    assert again["ran"] == [] and again["report"] == out["report"]


def test_where_the_baseline_alone_is_measured_its_scores_are_shown(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("eval", "--quant=BF16")
    out = capsys.readouterr().out
    assert "verdict" not in out and "41.0 to 54.0" in out


def test_a_plan_tells_of_the_measuring_if_a_suite_is_named(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command("plan")
    assert "evaluate" not in capsys.readouterr().out
    command("plan", "--suite=standard")
    out = capsys.readouterr().out
    assert "evaluate Q4_K_M" in out and "suite standard" in out and "the suite's data sets" in out
    command("plan", "--suite=standard", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["suite"], told["baseline"], told["stages"][-1]["label"]) == ("standard", "BF16", "report")


def test_a_build_offers_and_measures_nothing_of_an_eval(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUITE", "full")
    assert command("build") == 0
    assert "evaluate" not in (said := capsys.readouterr().err) and "build does not use SUITE" in said
    assert command("build", "--suite=quick") == 2
    _run(monkeypatch, "build", "--help")
    offered = capsys.readouterr().out
    assert [name for name in MEASURING if f"--{name.lower().replace('_', '-')} " in offered] == []


@pytest.mark.parametrize("command", [command for _, command, *_ in cli.COMMANDS])
def test_every_command_leads_to_a_function(command: str) -> None:
    assert callable(cli.find_command(command))


def test_a_broken_promise_of_the_api_and_a_missing_tool_have_exit_codes_of_their_own(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(behaviours={"contract Q4_K_M": keeps_contract("chat")})
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    assert command("contract", "--quant=Q4_K_M") == Answer.API_TEST_FAILED
    missing = DoctorFinding("engine", "missing", "neither docker nor local can run", "Install Docker")
    monkeypatch.setattr(doctor, "workflow_doctor", lambda _request: [missing])
    assert _run(monkeypatch, "doctor") == Answer.DOCTOR_FAILED
