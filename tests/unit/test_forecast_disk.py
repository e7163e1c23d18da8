"""A plan that cannot fit the disk: which of its files do, and how that is said."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quantyard import cli
from quantyard.errors import NotEnoughDisk
from quantyard.forecast import cost
from quantyard.forecast.disk import forecast_disk_bytes, forecast_fitting_files
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.quants.catalog import QUANTS, USEFUL, find_quant
from quantyard.sources.resolve import Source
from quantyard.workflows import matrix as matrix_workflow
from quantyard.workflows import planning
from tests.unit.conftest import MakeMeasured, Notes
from tests.unit.fake_engine import FakeEngine

ALL = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
SIZES = {"Q2_K": 3, "Q3_K_M": 4, "Q4_K_M": 5, "Q5_K_M": 6, "Q6_K": 7, "Q8_0": 9}


# ---- the rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "names"),
    [
        (34, "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"),
        (27, "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q8_0"),
        (24, "Q3_K_M,Q4_K_M,Q5_K_M,Q8_0"), (23, "Q2_K,Q4_K_M,Q5_K_M,Q8_0"), (14, "Q2_K,Q4_K_M,Q5_K_M"),
        (12, "Q2_K,Q3_K_M,Q4_K_M"), (9, "Q3_K_M,Q4_K_M"), (5, "Q4_K_M"), (4, "Q3_K_M"), (3, "Q2_K"),
        (2, ""), (-1, ""),
    ],
)  # fmt: skip
def test_as_many_as_fit_are_named_and_among_those_the_most_useful(room: int, names: str) -> None:
    assert ",".join(forecast_fitting_files(SIZES, room)) == names


def test_no_choice_of_more_files_fits_and_none_of_as_many_is_more_useful() -> None:
    rng = random.Random(3)
    for _ in range(200):
        sizes = {name: rng.randint(0, 9) for name in rng.sample(USEFUL, 6)}
        room = rng.randint(0, 40)
        possible = [c for n in range(7) for c in itertools.combinations(sizes, n) if sum(sizes[x] for x in c) <= room]
        most = max(map(len, possible))
        best = min((c for c in possible if len(c) == most), key=lambda c: sorted(map(USEFUL.index, c)))
        assert set(forecast_fitting_files(sizes, room)) == set(best)


def test_what_no_table_knows_comes_last_in_the_order_given() -> None:
    assert forecast_fitting_files({"mine": 5, "other": 5, "Q2_K": 5}, 10) == ("mine", "Q2_K")


def test_the_table_of_useful_quants_names_quants_that_need_no_matrix() -> None:
    assert [name for name in USEFUL if find_quant(name) not in QUANTS or find_quant(name).needs_imatrix] == []


def test_the_documentation_has_the_same_order() -> None:
    text = " ".join((REPO_DIR / "docs" / "explanation" / "forecasts.md").read_text().split())
    assert f"in this order: {', '.join(USEFUL)}, then the others" in text


def test_a_baseline_of_ones_own_is_no_choice_and_finished_files_take_nothing_more(
    local_source: Source, measured: MakeMeasured, notes: Notes
) -> None:
    builder = measured(local_source, FakeEngine(), "Q4_K_M,Q6_K", baseline=find_quant("Q8_0"))
    left = forecast_disk_bytes(builder.plan, ())
    assert list(left) == ["Q4_K_M", "Q6_K"] and left["Q4_K_M"] < left["Q6_K"]
    assert forecast_disk_bytes(builder.plan, {"quantize Q4_K_M"})["Q4_K_M"] == 0


# ---- the commands ------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    local_source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command where so many bytes are free, beside the reserve; its exit code and what it said."""
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(matrix_workflow, "write_release_report", lambda *_: tmp_path / "report.html")

    def go(command: str, free: int, engine: FakeEngine, *argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
        usage = Usage(10**12, 0, free + cost._RESERVE_BYTES)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
        fixed = ["--model=org/x", f"--artifacts={tmp_path / 'artifacts'}", "--imatrix=none"]
        with pytest.raises(SystemExit) as ended:
            cli.main([command, *fixed, *argv])
        return int(ended.value.code or 0), *capsys.readouterr()

    return go


def _needed(run: Run, quants: str, **more: str) -> int:
    """Bytes that a matrix of these quants takes."""
    options = [f"--{name}={text}" for name, text in more.items()]
    code, out, _err = run("plan", 10**9, FakeEngine(), f"--quants={quants}", "--suite=smoke", "--json", *options)
    assert code == 0
    return int(json.loads(out)["disk_needed_bytes"])


@pytest.mark.commands
def test_a_matrix_too_large_for_the_disk_runs_nothing_and_names_the_files_that_fit(run: Run) -> None:
    engine, free = FakeEngine(), _needed(run, "Q4_K_M,Q8_0")
    code, _out, err = run("matrix", free, engine, f"--quants={ALL}", "--suite=smoke")
    assert code == ExitCode.RESOURCES and engine.ran == []
    assert "of disk, and" in err and "are free in" in err
    (line,) = (line for line in err.splitlines() if line.startswith("These fit;"))
    setting, _, fits = line.rpartition("  ")[2].partition("=")
    assert setting == "QUANTS"
    code, _out, err = run("matrix", free, engine, f"--quants={fits}", "--suite=smoke")
    assert code == 0 and "Q4_K_M" in fits, err


@pytest.mark.commands
def test_one_byte_less_than_a_matrix_needs_is_too_little_and_as_much_is_enough(run: Run) -> None:
    free = _needed(run, "Q4_K_M,Q8_0")
    asked = ("--quants=Q4_K_M,Q8_0", "--suite=smoke")
    assert run("matrix", free - 1, FakeEngine(), *asked)[0] == ExitCode.RESOURCES
    assert run("matrix", free, FakeEngine(), *asked)[0] == 0


def test_where_not_one_file_fits_no_command_is_offered(run: Run) -> None:
    code, _out, err = run("matrix", 1, FakeEngine(), f"--quants={ALL}", "--suite=smoke")
    assert code == ExitCode.RESOURCES and "These fit" not in err and "ARTIFACTS=/path" in err


def test_plan_says_which_files_fit_and_ends_with_the_same_exit_code(run: Run) -> None:
    free = _needed(run, "Q4_K_M,Q8_0")
    code, out, err = run("plan", free, FakeEngine(), f"--quants={ALL}", "--suite=smoke")
    assert code == ExitCode.RESOURCES
    assert "too small for all; these fit: " in out and "type the same command with:  QUANTS=" in err
    code, out, _err = run("plan", free, FakeEngine(), f"--quants={ALL}", "--suite=smoke", "--json")
    assert code == 0 and "Q4_K_M" in json.loads(out)["fitting"]
    assert json.loads(run("plan", 10**9, FakeEngine(), f"--quants={ALL}", "--json")[1])["fitting"] is None


def test_a_build_of_several_files_names_the_quants_that_fit_too(run: Run) -> None:
    free = _needed(run, "Q4_K_M,Q8_0")
    code, _out, err = run("build", free, FakeEngine(), f"--quant={ALL}")
    assert code == ExitCode.RESOURCES and "These fit; type the same command with:  QUANT=" in err


def test_where_no_setting_names_the_files_none_is_offered(run: Run, tmp_path: Path) -> None:
    short = cost.Cost(10**9, 10**9, 0, (), fitting=("Q4_K_M",))
    with pytest.raises(NotEnoughDisk) as error:
        short.check_disk(tmp_path)
    assert "These fit" not in error.value.hint and "ARTIFACTS=/path" in error.value.hint
    with pytest.raises(NotEnoughDisk) as error:
        short.check_disk(tmp_path, "QUANTS")
    assert "type the same command with:  QUANTS=Q4_K_M" in error.value.hint


@pytest.mark.commands
def test_with_both_versions_of_each_file_a_matrix_takes_more_and_says_so_before_the_trial(run: Run) -> None:
    plain, both = _needed(run, ALL), _needed(run, ALL, imatrix="auto")
    engine = FakeEngine()
    asked: tuple[Any, ...] = (f"--quants={ALL}", "--suite=smoke", "--imatrix=auto")
    code, _out, err = run("matrix", both - 1, engine, *asked)
    assert plain < both and code == ExitCode.RESOURCES and engine.ran == [] and "These fit; " in err
