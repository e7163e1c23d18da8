"""Exit codes and kinds of errors: one table, which the code, `--help` and the reference share."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantyard
from quantyard import cli
from quantyard.cli.parser import help_overview
from quantyard.errors import GateClosed, QuantyardError, StageFailed
from quantyard.protocol.base import StageError, StageResult
from quantyard.protocol.exit_codes import EXIT_CODES, Answer, ExitCode

ROOT = Path(__file__).parents[2]
KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
REFERENCE = (ROOT / "docs" / "reference" / "exit-codes.md").read_text()


def _errors() -> Iterator[type[QuantyardError]]:
    """Every class of error of the package."""
    for module in pkgutil.walk_packages(quantyard.__path__, "quantyard."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    below = [QuantyardError]
    while below:
        found = below.pop()
        yield found
        below += (error for error in found.__subclasses__() if error.__module__.startswith("quantyard."))


def _stage_kinds() -> Iterator[tuple[str, str]]:
    """The (kind, exit code's name) of each `StageFailure` that is raised with both written out."""
    for folder in ("builder", "eval", "server", "quantyard"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
                if not (isinstance(call.func, ast.Name) and call.func.id == "StageFailure" and len(call.args) > 1):
                    continue
                code, kind = call.args[:2]
                if isinstance(code, ast.Attribute) and isinstance(kind, ast.Constant):
                    yield str(kind.value), code.attr


# ---- the table ---------------------------------------------------------------------------------------


def test_each_exit_code_has_one_row() -> None:
    assert sorted(row.code for row in EXIT_CODES) == sorted([*ExitCode, *Answer])
    assert len({int(row.code) for row in EXIT_CODES}) == len({row.name for row in EXIT_CODES}) == len(EXIT_CODES)
    assert all(KEBAB.fullmatch(row.name) and row.meaning.endswith(".") for row in EXIT_CODES)


def test_stages_end_as_they_always_did() -> None:
    known = {"DONE": 0, "BAD_REQUEST": 2, "UNSUPPORTED_MODEL": 3, "NETWORK": 4, "RESOURCES": 5, "BUG": 70,
             "INTERRUPTED": 130}  # fmt: skip
    assert {code.name: int(code) for code in ExitCode} == known


def test_code_1_is_left_to_python_and_the_shell() -> None:
    assert 1 not in {int(row.code) for row in EXIT_CODES}


def test_each_failure_says_what_to_do() -> None:
    silent = {row.code for row in EXIT_CODES if not row.what_to_do}
    assert silent == {ExitCode.DONE, Answer.OUTPUT_CLOSED}


def test_help_and_reference_list_every_exit_code() -> None:
    text = " ".join(help_overview().split())
    for row in EXIT_CODES:
        assert f"{int(row.code)} {row.meaning}" in text
        assert f"| {int(row.code)} | `{row.name}` | {row.meaning} | {row.what_to_do} |" in REFERENCE


# ---- kinds -------------------------------------------------------------------------------------------


def test_each_class_of_error_has_a_kind_of_its_own() -> None:
    found = list(_errors())
    assert len(found) > 30
    assert [error.__name__ for error in found if "kind" not in vars(error)] == []
    assert len({error.kind for error in found}) == len(found)
    assert all(KEBAB.fullmatch(error.kind) for error in found)


def test_each_class_of_error_ends_with_a_code_of_the_table() -> None:
    known = {int(row.code) for row in EXIT_CODES}
    assert {int(error.exit_code) for error in _errors()} <= known
    assert set(GateClosed.codes.values()) <= known


def test_the_reference_lists_every_kind() -> None:
    kinds = {error.kind for error in _errors()} - {GateClosed.kind}
    kinds |= {GateClosed(outcome, "", "", "").kind for outcome in GateClosed.codes}
    assert kinds == set(re.findall(r"^\| `([a-z0-9-]+)` \|", REFERENCE, re.MULTILINE))


@pytest.mark.commands
def test_a_stage_gives_its_failures_kinds_that_mean_nothing_else() -> None:
    classes = {error.kind: ExitCode(error.exit_code).name for error in _errors() if error.exit_code in list(ExitCode)}
    found = set(_stage_kinds())
    assert len(found) > 60
    assert [kind for kind, _code in found if not KEBAB.fullmatch(kind)] == []
    assert [kind for kind, code in found if classes.get(kind, code) != code] == []


@pytest.mark.parametrize(("said", "kind"), [
    ("out-of-memory", "out-of-memory"), ("Out Of Memory", "stage-failed"), ("x" * 41, "stage-failed"),
    ("a\x1b[31m", "stage-failed"), ("", "stage-failed"),
])  # fmt: skip
def test_a_stage_names_its_kind_only_in_kebab_case(said: str, kind: str) -> None:
    error = StageError(kind=said, message="It failed.")
    result = StageResult(stage="convert", exit_code=ExitCode.RESOURCES, error=error)
    assert StageFailed("convert", result).kind == kind


# ---- what the user sees ------------------------------------------------------------------------------


def _ended(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    return int(ended.value.code or 0)


def test_the_kind_reaches_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert _ended("build", "--model=org/name", "--quant=Q4_KM") == ExitCode.BAD_REQUEST
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.endswith(" (unknown-quant)")


def test_the_kind_reaches_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    code = _ended("build", "--model=org/name", "--quant=Q4_KM", "--json")
    said = json.loads(capsys.readouterr().out)["error"]
    assert (said["kind"], said["exit_code"]) == ("unknown-quant", code)
    assert said["message"] and "Q4_K_M" in said["message"] + said["hint"]


def test_a_bug_has_a_kind_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_name: str) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(cli, "find_command", broken)
    assert _ended("quants", "--json") == ExitCode.BUG
    said = json.loads(capsys.readouterr().out)["error"]
    assert said["kind"] == "bug" and "nobody foresaw this" in said["message"]
