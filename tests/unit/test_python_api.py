"""The Python API as a notebook user calls it, on an engine that writes what stages would."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest

import quantyard
from quantyard import api
from quantyard.api import call
from quantyard.api import settings as api_settings
from quantyard.cli.commands import COMMANDS
from quantyard.cli.settings import BY_NAME
from quantyard.errors import BadRequest, GateClosed, NotEnoughDisk, OutOfResources, StageFailed, UnknownQuant
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.sources.resolve import Source
from quantyard.store.manifest import Manifest, QuantRecord
from quantyard.workflows import planning
from quantyard.workflows.reporter import SilentReporter
from quantyard.workflows.results import Built
from tests.hub_server import HubServer
from tests.released import PASSES, REPO, SUITE, Yard, lay_out
from tests.unit.fake_engine import FakeEngine, fails, interrupted, keeps_contract
from tests.unit.release_engine import engine_of

pytestmark = pytest.mark.commands

Call = Callable[..., Any]


@pytest.fixture
def engine(local_source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    """What calls in this test run on; the model is a local one, and results go into a folder of the test's."""
    for name in (*BY_NAME, "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "artifacts"))
    fake = FakeEngine()
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (fake, "asked for"))
    return fake


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    """A model that was built and measured, and a Hub."""
    with HubServer() as hub:
        yield lay_out(tmp_path / "yard", hub, monkeypatch)


def on(yard: Yard, **settings: Any) -> dict[str, Any]:
    """The arguments of a call about this yard's files."""
    ours = {"artifacts": yard.artifacts, "engine": "local", "hf_endpoint": yard.hub.endpoint, "quant": "Q8_0,Q4_K_M"}
    return ours | settings


# ---- what a call returns ------------------------------------------------------------------------------


def test_a_build_returns_its_files_with_their_records_of_the_manifest(engine: FakeEngine, tmp_path: Path) -> None:
    built = quantyard.build("x", quant=["Q4_K_M", "Q8_0"])
    assert isinstance(built, Built) and [file.quant for file in built.files] == ["Q4_K_M", "Q8_0"]
    for file in built.files:
        assert isinstance(file, BuiltFile) and isinstance(file.record, QuantRecord)
        assert file.path.is_file() and file.path.is_relative_to(tmp_path / "artifacts")
        assert file.record.size_bytes == file.path.stat().st_size
    assert isinstance(built.manifest, Manifest) and built.manifest.quants["Q8_0"] == built.files[1].record
    assert quantyard.read_manifest(built.manifest_path) == built.manifest
    assert built.ran == tuple(built.manifest.stages) and built.report is None
    assert sorted(engine.ran) == sorted(built.ran)


def test_a_second_call_in_one_process_finds_all_of_it_done(engine: FakeEngine) -> None:
    first = quantyard.build("x", quant="Q4_K_M")
    again = quantyard.build("x", quant="Q4_K_M")
    assert first.ran and again.ran == () and again.files == first.files


def test_an_evaluation_returns_its_report(engine: FakeEngine) -> None:
    built = quantyard.evaluate("x", quant="Q4_K_M", suite="smoke", limit=3)
    assert built.report is not None and built.report.baseline == "BF16"
    assert {m.file.label for m in built.report.measurements} == {"BF16", "Q4_K_M"}
    assert built.measured is not None and (built.measured.folder / "report.md").is_file()


def test_an_evaluation_without_a_suite_asks_the_quick_one(engine: FakeEngine) -> None:
    planned = quantyard.plan("x", quant="Q4_K_M", suite="quick")
    built = quantyard.evaluate("x", quant="Q4_K_M")
    assert built.plan.measuring == planned.plan.measuring


def test_a_plan_says_what_would_run_and_runs_nothing(engine: FakeEngine) -> None:
    planned = quantyard.plan("x", quant="Q4_K_M")
    assert planned.to_run == ("twin", "convert", "quantize Q4_K_M", "verify Q4_K_M")
    assert planned.engine == "fake" and planned.cost.disk_needed_bytes > 0
    assert engine.ran == [] and engine.prepared == []


def test_a_plan_of_a_matrix_has_every_quant(engine: FakeEngine) -> None:
    planned = quantyard.plan("x", quants=("Q4_K_M", "Q8_0"), suite="smoke", imatrix="none")
    assert [target.quant.name for target in planned.plan.targets] == ["Q4_K_M", "Q8_0"]


def test_a_matrix_keeps_the_files_that_succeed_and_tells_of_those_that_fail(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    monkeypatch.setattr(
        "quantyard.workflows.matrix.write_release_report", lambda *_: page
    )  # the fake measures no files
    engine.behaviours["quantize Q4_K_M"] = fails(ExitCode.RESOURCES)
    found = quantyard.matrix("x", quants="Q4_K_M,Q8_0", suite="smoke", imatrix="none")
    assert [file.quant for file in found.built.files] == ["Q8_0"] and found.page == page
    assert found.built.failures["quantize Q4_K_M"].code == ExitCode.RESOURCES
    assert found.chosen is None and "Q8_0" in found.not_chosen, "the fake's files cannot be read"


def test_the_reports_of_an_api_test_say_which_promise_is_broken(engine: FakeEngine) -> None:
    engine.behaviours["contract Q4_K_M"] = keeps_contract("chat")
    (report,) = quantyard.contract("x", quant="Q4_K_M")
    assert not report.passed and [check.name for check in report.with_status("failed")] == ["chat"]


def test_what_was_built_is_judged_shown_and_published_in_a_dry_run(yard: Yard) -> None:
    limits = yard.root / "gate.yaml"
    limits.write_text(PASSES)
    judged = quantyard.gate(yard.model, **on(yard, gate=limits))
    assert judged.outcome == "passed" and yard.manifest().gate == judged
    written = quantyard.report(yard.model, **on(yard, gate=limits))
    assert written.page.name == "report.html" and written.card.read_text().startswith("---")
    done = quantyard.publish(yard.model, **on(yard, gate=limits, repo=REPO, dry_run=True))
    assert done.published is None and done.intended is not None and done.gate == judged
    assert "README.md" in {change.path for change in done.intended.changes} and not yard.written()


def test_a_release_is_published_once_and_then_verified_from_the_hub(yard: Yard) -> None:
    limits = yard.root / "gate.yaml"
    limits.write_text(PASSES)
    told = on(yard, gate=limits, repo=REPO)
    first = quantyard.publish(yard.model, **told)
    assert first.published is not None and first.published.hub is not None
    again = quantyard.publish(yard.model, **told)
    assert again.published is not None and again.published.hub is not None
    assert {change.state for change in again.published.hub.changes} == {"unchanged"}
    found = quantyard.verify(repo=REPO, artifacts=yard.artifacts, engine="local", hf_endpoint=yard.hub.endpoint)
    assert found.state == "ok", found.checks
    changed = yard.artifacts / "verified"
    (path,) = changed.rglob("*-Q4_K_M.gguf")
    path.write_bytes(path.read_bytes() + b"!")
    assert quantyard.verify(file=path).state == "failed"


def test_a_whole_release_runs_on_an_engine_and_ends_with_what_was_published(yard: Yard) -> None:
    engine = engine_of(yard)
    limits = yard.root / "gate.yaml"
    limits.write_text(PASSES)
    done = quantyard.release(yard.model, **on(yard, gate=limits, repo=REPO, suite=SUITE))
    assert {"convert", "quantize Q4_K_M", "report"} <= set(engine.ran)
    assert done.published is not None and done.published.hub is not None and done.gate.outcome == "passed"


def test_the_best_file_for_a_memory_is_chosen(yard: Yard) -> None:
    found = quantyard.choose(yard.model, **on(yard, ram="64GiB", context_size=1024, parallel=1))
    assert found.best.quant in ("Q8_0", "Q4_K_M") and found.best.path.is_file()
    assert found.budget.memory_bytes == 64 * 2**30


def test_where_no_file_meets_the_limits_the_error_says_what_would_help(yard: Yard) -> None:
    with pytest.raises(BadRequest) as refused:
        quantyard.choose(yard.model, **on(yard, ram=64 * 2**30, min_tps=1e6, context_size=1024, parallel=1))
    assert "MIN_TPS" in refused.value.message and "allows" in refused.value.hint


def test_the_doctor_returns_findings(engine: FakeEngine) -> None:
    findings = quantyard.doctor(engine="local")
    assert {"Python", "engine"} <= {finding.what for finding in findings}


# ---- what a call says ---------------------------------------------------------------------------------


def test_nothing_is_printed(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    quantyard.build("x", quant="Q4_K_M")
    quantyard.plan("x", quant="Q4_K_M", suite="smoke")
    assert capfd.readouterr() == ("", "")


def test_a_function_is_given_each_line_of_progress(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    quantyard.build("x", quant="Q4_K_M", progress=lines.append)
    assert "4 of 4 stages to run with fake" in lines[0]
    assert [line.split()[0] for line in lines[1:5]] == ["[twin]", "[convert]", "[quantize", "[verify"]
    assert not any("\n" in line for line in lines)
    quantyard.build("x", quant="Q8_0", progress=print)
    assert "[quantize Q8_0]" in capfd.readouterr().out


def test_no_line_of_progress_acts_on_a_terminal_or_shows_a_password() -> None:
    lines: list[str] = []
    reporter = call.api_reporter(lines.append)
    with reporter.steps() as steps:
        steps.note("\x1b[2Jgone http://me:secret@host/")
    assert "\x1b" not in lines[0] and "secret" not in lines[0]


def test_a_reporter_of_ones_own_is_used_as_it_is() -> None:
    own = SilentReporter()
    assert call.api_reporter(own) is own


# ---- errors ------------------------------------------------------------------------------------------


def test_errors_have_a_kind_a_message_and_what_to_do(engine: FakeEngine) -> None:
    with pytest.raises(UnknownQuant) as refused:
        quantyard.build("x", quant="Q4_KM")
    assert "Q4_K_M" in refused.value.message and refused.value.hint and refused.value.code == 2
    assert refused.value.kind == "unknown-quant"
    assert engine.ran == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"threads": "8"}, "threads"), ({"threads": 10**9}, "THREADS"), ({"engine": "mars"}, "ENGINE"),
        ({"allow_pickle": 1}, "allow_pickle"), ({"quant": 4}, "quant"), ({"memory": 5}, "MEMORY"),
        ({"calibration": ["a,b.txt"]}, "calibration"), ({"quant": {"Q4_K_M": 1}}, "dict"),
        ({"hf_endpoint": "http://me:secret@hub"}, "HF_ENDPOINT"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_name_of_its_argument(
    settings: dict[str, Any], named: str, engine: FakeEngine
) -> None:
    with pytest.raises(BadRequest) as refused:
        quantyard.build("x", **settings)
    assert named in refused.value.message and "secret" not in refused.value.message


def test_an_argument_that_a_function_does_not_take_is_a_type_error(engine: FakeEngine) -> None:
    with pytest.raises(TypeError, match=r"build\(\) has no argument 'quants'. Did you mean 'quant'\?"):
        quantyard.build("x", quants="Q4_K_M")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'model'"):
        quantyard.build("x", model="y")


def test_a_stage_that_fails_is_an_error_and_what_finished_before_it_is_kept(engine: FakeEngine) -> None:
    engine.behaviours["quantize Q4_K_M"] = fails(ExitCode.UNSUPPORTED_MODEL)
    with pytest.raises(StageFailed) as failed:
        quantyard.build("x", quant="Q4_K_M")
    assert failed.value.code == ExitCode.UNSUPPORTED_MODEL and "It was told to fail" in failed.value.message
    assert "convert" not in quantyard.plan("x", quant="Q4_K_M").to_run


def test_a_closed_gate_is_an_error_with_its_findings(yard: Yard) -> None:
    limits = yard.root / "gate.yaml"
    limits.write_text("defaults: {max_mean_kld: 0.0000001}\n")
    with pytest.raises(GateClosed) as closed:
        quantyard.publish(yard.model, **on(yard, gate=limits, repo=REPO))
    assert closed.value.outcome == "failed" and "Q4_K_M" in closed.value.detail and not yard.written()


def test_a_full_disk_is_one_of_our_errors_and_a_bug_stays_what_it_is(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(planning, "make_build_plan", full)
    with pytest.raises(OutOfResources, match="disk is full"):
        quantyard.build("x", quant="Q4_K_M")

    def wrong(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(planning, "make_build_plan", wrong)
    with pytest.raises(KeyError):
        quantyard.build("x", quant="Q4_K_M")


def test_a_disk_that_is_too_small_is_found_out_before_anything_runs(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=10))
    with pytest.raises(NotEnoughDisk):
        quantyard.build("x", quant="Q4_K_M")
    assert engine.ran == []


def test_numbers_of_numpy_are_numbers_and_sizes_are_bytes(engine: FakeEngine) -> None:
    request = call.api_request("eval", {"limit": np.int64(5), "memory": 2**30, "suite": "smoke"}, MODEL="x")
    assert request.measure is not None and request.measure.limit == 5
    assert request.environment.memory_bytes == 2**30
    chosen = call.api_request("choose", {"min_tps": np.float64(2.5), "ram": "8GiB"}, MODEL="x").choose
    assert chosen is not None and (chosen.min_tokens_per_s, chosen.ram_bytes) == (2.5, 8 * 2**30)


# ---- where a call runs -------------------------------------------------------------------------------


def test_a_call_works_inside_a_running_event_loop(engine: FakeEngine) -> None:
    async def cell() -> Built:
        return quantyard.build("x", quant="Q4_K_M")

    assert asyncio.run(cell()).files


def test_calls_work_in_threads_and_two_on_one_model_wait_for_each_other(engine: FakeEngine) -> None:
    assert threading.current_thread() is threading.main_thread()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(quantyard.build, "x", quant=quant) for quant in ("Q4_K_M", "Q8_0")]
        built = [one.result(timeout=60) for one in calls]
    assert [one.files[0].quant for one in built] == ["Q4_K_M", "Q8_0"]
    assert engine.ran.count("convert") == 1
    assert {"Q4_K_M", "Q8_0"} <= set(built[0].manifest.quants)


def test_an_interrupt_passes_and_the_next_call_goes_on_from_there(engine: FakeEngine) -> None:
    engine.behaviours["quantize Q4_K_M"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        quantyard.build("x", quant="Q4_K_M")
    del engine.behaviours["quantize Q4_K_M"]
    assert quantyard.build("x", quant="Q4_K_M").ran == ("quantize Q4_K_M", "verify Q4_K_M")


def test_the_environment_describes_the_machine_and_not_what_is_made(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in {"QUANT": "Q8_0", "SUITE": "full", "LIMIT": "x", "JSON": "1", "ARTIFACTS": str(tmp_path)}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quantyard.toml").write_text('quant = "Q2_K"')
    built = quantyard.build("x")
    assert [file.quant for file in built.files] == ["Q4_K_M"] and built.folder.is_relative_to(tmp_path)
    elsewhere = quantyard.build("x", artifacts=tmp_path / "other")
    assert elsewhere.folder.is_relative_to(tmp_path / "other"), "an argument wins over a variable"


def test_a_token_and_a_proxys_password_are_given_to_the_call_and_shown_nowhere(engine: FakeEngine) -> None:
    settings = {"hf_token": "hf_abc", "https_proxy": "http://me:secret@proxy:3128"}
    request = call.api_request("build", settings, MODEL="x")
    assert request.hf_token == "hf_abc" and (request.environment.proxies or {})["HTTPS_PROXY"].startswith("http://me")
    assert "secret" not in repr(request) and "hf_abc" not in repr(request)


# ---- the lists agree ---------------------------------------------------------------------------------

_KINDS = {
    "text": str, "path": str | os.PathLike[str], "flag": bool, "integer": int, "decimal": float,
    "size": int | str, "list": api_settings.Names, "paths": api_settings.Files,
}  # fmt: skip
_ASIDE = {  # whose values are of another type than their kind says
    "engine", "outtype", "parity", "parts", "imatrix", "suite", "target_size", "model", "base",
    "node_engine", "network_stages",
}
_FUNCTIONS = {  # by command
    "build": api_settings.BuildSettings, "eval": api_settings.EvaluateSettings,
    "contract": api_settings.BuildSettings, "plan": api_settings.PlanSettings,
    "matrix": api_settings.MatrixSettings, "compare": api_settings.CompareSettings,
    "bump": api_settings.BumpSettings,
    "publish": api_settings.PublishSettings,
    "gate": api_settings.GateSettings, "report": api_settings.ReportSettings,
    "release": api_settings.ReleaseSettings, "verify": api_settings.VerifySettings,
    "choose": api_settings.ChooseSettings, "tune": api_settings.TuneSettings, "lora": api_settings.LoraSettings,
    "doctor": api_settings.MachineSettings, "demo": api_settings.MachineSettings,
}  # fmt: skip
_WITHOUT_FUNCTION = {
    "image", "serve", "rates", "quants", "models", "images", "config", "completion", "init", "node", "gc",
}  # fmt: skip


@pytest.mark.parametrize("command", _FUNCTIONS)
def test_a_function_takes_the_settings_of_its_command(command: str) -> None:
    function = getattr(quantyard, {"eval": "evaluate"}.get(command, command))
    parameters = inspect.signature(function).parameters
    positional = {name for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}
    named = {name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY} - {"progress"}
    assert named == set(get_type_hints(_FUNCTIONS[command]))
    assert named | positional == set(call.api_settings(command)), "the table of commands"
    for name in named:
        assert f"\n    {name}: " in (function.__doc__ or "")


@pytest.mark.parametrize("settings", list(dict.fromkeys(_FUNCTIONS.values())), ids=lambda settings: settings.__name__)
def test_an_argument_has_the_type_of_its_settings_kind(settings: type) -> None:
    for name, kind in get_type_hints(settings).items():
        if name not in _ASIDE:
            assert kind == _KINDS[BY_NAME[name.upper()].kind], name


def test_every_command_has_a_function_or_is_of_the_terminal_alone() -> None:
    assert {row.name for row in COMMANDS} == {*_FUNCTIONS, *_WITHOUT_FUNCTION}


@pytest.mark.parametrize("name", [name for name in quantyard.__all__ if name != "__version__"])
def test_every_public_name_says_what_it_is(name: str) -> None:
    assert (getattr(quantyard, name).__doc__ or "").strip()


# ---- the package -------------------------------------------------------------------------------------


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=REPO_DIR, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_nothing_of_it() -> None:
    code = "import sys, quantyard; print([m for m in sys.modules if m.startswith(('quantyard.', 'pydantic', 'rich'))])"
    assert _python(code) == "[]"


def test_a_function_keeps_its_name_where_a_room_has_the_same_one() -> None:
    code = """
        import quantyard.plan.steps, quantyard.gate.judge, quantyard.tune.goal, quantyard.publish.send
        from quantyard.choose.pick import Choice
        import quantyard
        names = ("plan", "gate", "tune", "publish", "choose")
        print(all(callable(getattr(quantyard, name)) for name in names), Choice.__module__)
    """
    assert _python(code) == "True quantyard.choose.pick"


def test_what_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="biuld"):
        quantyard.biuld  # type: ignore[attr-defined]  # noqa: B018
    assert set(quantyard.__all__) <= set(dir(quantyard))
    assert api.build is quantyard.build


_SNIPPET = """
from pathlib import Path

import quantyard

built = quantyard.build("org/name", quant=["Q4_K_M"], engine="local", artifacts=Path("out"), progress=print)
path: Path = built.files[0].path
kld = [m.divergence.mean_kld for m in built.report.measurements if m.divergence] if built.report else []
best: str = quantyard.choose("org/name", ram="8GiB", min_tps=20.0).best.quant
outcome: str = quantyard.gate("org/name").outcome
manifest: quantyard.Manifest | None = quantyard.read_manifest(built.manifest_path)
try:
    quantyard.publish("org/name", repo="me/name-GGUF", dry_run=True)
except quantyard.QuantyardError as error:
    print(error.message, error.hint)
"""
_WRONG = {
    'quantyard.build("x", quantt="Q4_K_M")': "quantt", 'quantyard.build("x", engine="mars")': "mars",
    'quantyard.build("x", threads="8")': "threads", 'quantyard.verify("x")': "verify", "quantyard.biuld()": "biuld",
}  # fmt: skip


def test_a_type_checker_knows_the_arguments_and_the_results(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(_SNIPPET)
    (tmp_path / "wrong.py").write_text("import quantyard\n" + "".join(f"{line}\n" for line in _WRONG))
    argv = [sys.executable, "-m", "mypy", str(tmp_path / "right.py"), str(tmp_path / "wrong.py")]
    said = subprocess.run(argv, cwd=REPO_DIR, capture_output=True, text=True).stdout  # with the cache of `make lint`
    errors = [line.partition("wrong.py:")[2] for line in said.splitlines() if "error:" in line]
    assert {error.partition(":")[0] for error in errors} == {str(n + 2) for n in range(len(_WRONG))}, said
    for number, named in enumerate(_WRONG.values(), start=2):
        assert any(error.startswith(f"{number}:") and named in error for error in errors), said
