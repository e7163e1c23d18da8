"""Numbers that are none, facts of the wrong type, and manifests that cannot be read: nothing of them is written, and
what is lost is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from quantyard.cli.render.build import terminal_built
from quantyard.errors import ResultRefused
from quantyard.formats.finite_json import dump_finite_json, only_finite_json
from quantyard.plan.steps import StageSpec
from quantyard.protocol.api_tests import CheckRecord
from quantyard.protocol.base import StageResult
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.gate import BudgetResult
from quantyard.protocol.runner import Stage
from quantyard.protocol.runner import _failed_stage_result as failed
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Workspace
from quantyard.store.manifest import QuantRecord, read_manifest
from quantyard.workflows.results import Built
from tests.unit.conftest import MakeRunner, Notes, local_source, make_runner, notes
from tests.unit.fake_engine import Behaviour, FakeEngine, writes

__all__ = ["local_source", "make_runner", "notes"]  # fixtures
NO_NUMBERS = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("number", NO_NUMBERS)
@pytest.mark.parametrize("record", [
    lambda x: Interval(value=x, low=0, high=0), lambda x: Estimate(value=0, stderr=x),
    lambda x: StageResult(stage="s", exit_code=0, duration_s=x),  # type: ignore[arg-type]
    lambda x: StageResult(stage="s", exit_code=0, facts={"a": [{"b": x}]}),  # type: ignore[arg-type]
    lambda x: QuantRecord(file="a", size_bytes=1, sha256="0" * 64, bits_per_weight=x, made_by="", verified_by=""),
    lambda x: BudgetResult(quant="q", budget="b", limit=x, outcome="passed", finding=""),
    lambda x: CheckRecord(name="n", promise="p", status="passed", finding="", duration_s=0, facts={"a": {"b": x}}),
])  # fmt: skip
def test_no_record_takes_a_number_that_is_none(record: Callable[[float], object], number: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        record(number)


@pytest.mark.parametrize("value", [*NO_NUMBERS, [math.nan], {"a": {"b": [1, -math.inf]}}])
def test_none_is_written_as_json_either(value: Any) -> None:
    for write in (dump_finite_json, only_finite_json):
        with pytest.raises(ValueError, match=r"float|finite"):
            write(value)


@pytest.mark.parametrize("value", [2**64, -(2**70), 10**400, 1e101, {"a": [[[1e300]]]}])
def test_nor_is_one_that_would_not_survive_a_sum(value: Any) -> None:
    with pytest.raises(ValueError, match=r"64 bits|too large for a measurement"):
        only_finite_json(value)


def _verifies(facts: dict[str, Any]) -> Behaviour:
    """A `verify` that leaves these facts, whatever its model would say to them."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        return writes()(spec, space).model_copy(update={"facts": facts})

    return behave


@pytest.mark.parametrize("facts", [
    {}, {"bits_per_weight": None}, {"bits_per_weight": "4.5"}, {"bits_per_weight": "nan"},
    {"bits_per_weight": math.nan}, {"bits_per_weight": math.inf}, {"bits_per_weight": -1}, {"bits_per_weight": 1e6},
    {"bits_per_weight": [4.5]}, {"bits_per_weight": True}, {"bits_per_weight": 4.5, "n_params": "7"},
    {"bits_per_weight": 4.5, "n_params": 2**60}, {"bits_per_weight": 4.5, "probes": {}},
    {"bits_per_weight": 4.5, "mismatches_allowed": "all"},
])  # fmt: skip
def test_a_fact_of_the_wrong_type_is_the_stages_fault_and_ends_with_its_name(
    facts: dict[str, Any], local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    builder = make_runner(local_source, FakeEngine(behaviours={"verify Q4_K_M": _verifies(facts)}))
    with pytest.raises(ResultRefused, match=r"^verify Q4_K_M: .*its facts\.") as refused:
        builder.run(notes)
    assert refused.value.code == 2 and not list(builder.store.folder.glob("*.gguf"))
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None and set(manifest.stages) == {"convert", "quantize Q4_K_M"} and manifest.quants == {}


def test_a_number_that_a_stage_cannot_write_down_is_the_models_fault(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as wrong:
        Interval(value=math.nan, low=0, high=0)
    result = failed(Stage("speed", tmp_path, tmp_path, {}), wrong.value, 0.1)
    assert result.exit_code == 3 and result.error is not None
    assert "beyond any measure: value is nan" in result.error.message


# ---- manifests ---------------------------------------------------------------------------------------------------

Damage = Callable[[dict[str, Any]], str]


def _with_nan(manifest: dict[str, Any]) -> str:
    manifest["quants"]["Q4_K_M"]["bits_per_weight"] = math.nan
    return json.dumps(manifest)


def _with_null(manifest: dict[str, Any]) -> str:
    manifest["quants"]["Q4_K_M"]["bits_per_weight"] = None  # what an older version wrote of a NaN
    return json.dumps(manifest)


def _with_infinite_fact(manifest: dict[str, Any]) -> str:
    manifest["stages"]["verify Q4_K_M"]["facts"]["x"] = [math.inf]
    return json.dumps(manifest)


def _half(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest)[:-20]


def _list(_manifest: dict[str, Any]) -> str:
    return "[" * 100_000


@pytest.mark.parametrize(("damage", "lost"), [
    (_with_nan, "quants Q4_K_M"), (_with_null, "quants Q4_K_M"), (_with_infinite_fact, "stages verify Q4_K_M"),
    (_half, "everything"), (_list, "everything"),
])  # fmt: skip
def test_a_manifest_that_cannot_be_read_is_kept_aside_and_the_user_is_told_what_is_lost(
    damage: Damage, lost: str, local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    builder = make_runner(local_source, FakeEngine(), "Q4_K_M,Q8_0")
    builder.run(notes)
    path = builder.store.folder / "manifest.json"
    text = damage(json.loads(path.read_text()))
    path.write_text(text)
    make_runner(local_source, FakeEngine(), "Q4_K_M").run(notes)
    (said,) = [line for line in notes.lines if "cannot be read" in line]
    (aside,) = builder.store.folder.glob("manifest.unreadable-*.json")
    assert aside.read_text() == text and aside.name in said and lost in said
    again = read_manifest(path)
    assert again is not None and "Q4_K_M" in again.quants
    assert ("Q8_0" in again.quants) == (lost != "everything"), "what was whole is not lost"


# ---- what is trusted ---------------------------------------------------------------------------------------------


def test_where_there_was_nothing_to_do_it_is_said_what_was_trusted_and_how_to_check(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    make_runner(local_source, FakeEngine()).run(notes)
    builder = make_runner(local_source, FakeEngine())
    (built,) = builder.run(notes)
    text = terminal_built(Built(builder.plan, (built,), tuple(builder.ran), builder.store.folder))
    assert "Nothing to do" in text and "its size and modification time" in text
    assert f"make verify FILE={built.path}" in text


def test_a_file_whose_bytes_were_changed_is_made_again_and_that_is_said(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    (built,) = make_runner(local_source, FakeEngine()).run(notes)
    before = built.path.read_bytes()
    built.path.write_bytes(bytes(byte ^ 1 for byte in before))
    engine = FakeEngine()
    (again,) = make_runner(local_source, engine).run(notes)
    assert engine.ran[0] == "quantize Q4_K_M" and again.path.read_bytes() == before
    assert any("made again" in line and "was changed after it was made" in line for line in notes.lines)
