"""The contract test in a plan: it follows the build, is kept in the manifest, and is not repeated."""

from __future__ import annotations

import pytest

from quantyard.cli.render.build import terminal_contract
from quantyard.errors import QuantyardError, StageFailed
from quantyard.plan.api_tests import add_contract_steps
from quantyard.protocol.base import ExitCode
from quantyard.sources.resolve import Source
from quantyard.store.manifest import read_manifest
from tests.unit.conftest import MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine, fails, keeps_contract, writes


def test_each_file_is_tested_after_the_build_and_the_result_is_in_the_manifest(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    engine = FakeEngine()
    builder = make_runner(local_source, engine, "Q4_K_M,Q8_0")
    builder.plan = add_contract_steps(builder.plan, threads=1)
    builder.run(notes)
    assert engine.ran[-2:] == ["contract Q4_K_M", "contract Q8_0"]
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None and set(manifest.contracts) == {"Q4_K_M", "Q8_0"}
    assert manifest.contracts["Q8_0"].passed and manifest.stages["contract Q8_0"].request["stage"] == "contract"


def test_a_repeat_tests_nothing_and_still_tells_what_was_found(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    for expected in (["convert", "quantize Q4_K_M", "verify Q4_K_M", "contract Q4_K_M"], []):
        engine = FakeEngine()
        builder = make_runner(local_source, engine)
        builder.plan = add_contract_steps(builder.plan, threads=1)
        builder.run(notes)
        assert engine.ran == expected
        assert [report.label for report in builder.contracts] == ["Q4_K_M"]


def test_a_broken_promise_is_named_and_counted(local_source: Source, make_runner: MakeRunner, notes: Notes) -> None:
    engine = FakeEngine(behaviours={"contract Q4_K_M": keeps_contract("chat")})
    builder = make_runner(local_source, engine)
    builder.plan = add_contract_steps(builder.plan, threads=0)
    builder.run(notes)
    text = terminal_contract(builder.contracts)
    assert "Q4_K_M (fake) fails 1 of 2 checks of the API test" in text
    assert "FAIL chat" in text and "ok   health" in text


def test_a_contract_test_that_fails_or_leaves_no_report_is_an_error(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    for behaviour, error in ((fails(ExitCode.RESOURCES), StageFailed), (writes("report.json"), QuantyardError)):
        builder = make_runner(local_source, FakeEngine(behaviours={"contract Q4_K_M": behaviour}))
        builder.plan = add_contract_steps(builder.plan, threads=0)
        with pytest.raises(error):
            builder.run(notes)
