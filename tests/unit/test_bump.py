"""`bump` makes the recorded files with another llama.cpp in a store of its own, and says what changed, file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import quantyard
from quantyard.cli import main
from quantyard.errors import BadRequest
from quantyard.metrics.regression import file_change
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.evaluation import ReportRequest
from quantyard.protocol.exit_codes import Answer
from quantyard.protocol.measurements import Comparison, EvalReport
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Workspace
from quantyard.workflows import bump as workflow
from quantyard.workflows import planning
from quantyard.workflows.bump import Bumped
from tests.outputs import check_output
from tests.unit.conftest import SUITE
from tests.unit.fake_engine import FakeEngine, fails, writes
from tests.unit.fake_report import report_of

pytestmark = pytest.mark.commands


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_source: Source) -> dict[str, FakeEngine]:
    """The recorded llama.cpp, and another one, which LLAMA_CPP=new names."""
    found = {"recorded": FakeEngine(), "new": FakeEngine(image="image-2")}
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(
        planning, "choose_engine",
        lambda _name, _environment, images: (found["new" if "new" in images.bases["builder"] else "recorded"], "asked"),
    )
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "artifacts"))
    quantyard.evaluate("x", quant="Q4_K_M,Q8_0", suite="smoke")
    return found


def bumped(**settings: Any) -> Bumped:
    return quantyard.bump("x", **{"llama_cpp": "new", **settings})


def other_bytes(engine: FakeEngine, label: str) -> None:
    engine.behaviours[label] = lambda spec, space: writes("model.gguf")(
        spec.__class__(f"{spec.label} anew", spec.row, spec.request, spec.inputs, spec.key), space
    )


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "bump" not in path.parts)
    return {str(path): path.read_bytes() for path in paths if not path.name.startswith(".")}


def test_equal_bytes_are_told_and_not_measured_and_nothing_recorded_changes(
    engines: dict[str, FakeEngine], tmp_path: Path
) -> None:
    before = files_in(tmp_path / "artifacts")
    found = bumped()
    assert not found.is_worse and found.same_conversion and found.report is None
    assert [(change.quant, change.same_bytes) for change in found.changes] == [("Q4_K_M", True), ("Q8_0", True)]
    assert {"convert", "quantize Q4_K_M", "verify Q8_0"} <= set(engines["new"].ran)
    assert not any(label.startswith(("evaluate", "divergence", "report")) for label in engines["new"].ran)
    assert files_in(tmp_path / "artifacts") == before


def test_a_file_with_other_bytes_is_measured_beside_the_recorded_one(engines: dict[str, FakeEngine]) -> None:
    other_bytes(engines["new"], "quantize Q8_0")
    found = bumped()
    by_quant = {change.quant: change for change in found.changes}
    assert by_quant["Q4_K_M"].same_bytes and not by_quant["Q8_0"].same_bytes
    assert found.report is not None
    assert {m.file.label for m in found.report.measurements} == {"BF16", "Q8_0", "Q8_0@recorded"}
    assert by_quant["Q8_0"].quality is not None and by_quant["Q8_0"].quality.value == 0
    assert {"report", "report Q8_0", "evaluate Q8_0@recorded"} <= set(engines["new"].ran)


def test_files_of_another_conversion_are_measured_against_the_recorded_one(
    engines: dict[str, FakeEngine], tmp_path: Path
) -> None:
    def converts_otherwise(spec: StageSpec, space: Workspace) -> StageResult:
        return writes("model.gguf", "reference.json")(
            StageSpec("convert anew", spec.row, spec.request, spec.inputs, spec.key), space
        )

    engines["new"].behaviours["convert"] = converts_otherwise
    other_bytes(engines["new"], "quantize Q8_0")
    found = bumped(quant="Q8_0")
    assert found.same_conversion is False and found.report is not None and found.conversion_kld is not None
    labels = [m.file.label for m in found.report.measurements]
    assert labels[0] == "BF16" and "conversion@new" in labels
    (recorded,) = (tmp_path / "artifacts" / "local").glob("*/*/stages/convert-*/result.json")
    sha256 = json.loads(recorded.read_text())["outputs"][0]["sha256"]
    (baseline,) = engines["new"].told["evaluate BF16"]["model"][:1]
    assert baseline["sha256"] == sha256


def test_a_quant_that_cannot_be_made_any_more_is_worse_and_the_others_go_on(engines: dict[str, FakeEngine]) -> None:
    engines["new"].behaviours["quantize Q8_0"] = fails(ExitCode.UNSUPPORTED_MODEL)
    found = bumped()
    assert found.is_worse and "quantize Q8_0" in found.failures
    assert [change.sha256 != "" for change in found.changes] == [True, False]


def test_the_exit_code_and_the_json_tell_whether_something_got_worse(
    engines: dict[str, FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    for broken, code in ((False, 0), (True, Answer.BUMP_WORSE)):
        if broken:
            engines["new"].behaviours["verify Q8_0"] = fails(ExitCode.UNSUPPORTED_MODEL)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["bump", "--model=x", f"--llama-cpp=new{broken}", "--json"])
        said = json.loads(capsys.readouterr().out)
        check_output("bump", said)
        assert (ended.value.code, said["worse"], bool(said["failed"])) == (code, broken, broken)


def test_without_a_recorded_build_or_a_usable_name_it_is_refused(
    engines: dict[str, FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match="Q6_K was not built"):
        bumped(quant="Q6_K")
    engines["recorded"].name = "local"
    with pytest.raises(BadRequest, match="not the folder of a virtual environment"):
        bumped(llama_cpp=str(tmp_path))
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "none"))
    with pytest.raises(BadRequest, match="Nothing was built"):
        bumped()


@pytest.mark.parametrize(("named", "image"), [
    ("full-b7000", "ghcr.io/ggml-org/llama.cpp:full-b7000"), ("me/llama:1", "me/llama:1"),
    ("me/llama@sha256:" + "0" * 64, "me/llama@sha256:" + "0" * 64), ("local-base:2", "local-base:2"),
])  # fmt: skip
def test_a_tag_is_one_of_the_configured_image_and_an_image_is_taken_as_it_is(named: str, image: str) -> None:
    assert workflow._image_named_for_bump(named, "ghcr.io/ggml-org/llama.cpp:full") == image


def _report(new_kld: float, old_kld: float) -> EvalReport:
    request = ReportRequest(title="x", suite=SUITE, baseline="BF16", labels=("BF16", "Q8_0", "Q8_0@recorded"))
    values = {"Q8_0": new_kld, "Q8_0@recorded": old_kld}

    def with_kld(m: Any) -> Any:
        if m.file.label not in values:
            return m
        kld = Estimate(value=values[m.file.label], stderr=0.0001)
        return m.model_copy(update={"divergence": m.divergence.model_copy(update={"mean_kld": kld})})

    report = report_of(request)
    return report.model_copy(update={"measurements": tuple(with_kld(m) for m in report.measurements)})


@pytest.mark.parametrize(("new", "old", "verdict", "is_worse"), [
    (0.0312, 0.0312, "same", False), (0.0313, 0.0312, "same", False),  # within chance
    (0.0330, 0.0312, "same", True), (0.0290, 0.0312, "same", False),
    (0.0312, 0.0312, "worse", True), (0.0290, 0.0312, "worse", True), (0.0312, 0.0312, "better", False),
])  # fmt: skip
def test_a_file_is_worse_if_it_is_further_or_loses_a_task_beyond_chance(
    new: float, old: float, verdict: Any, is_worse: bool
) -> None:
    pair = report_of(ReportRequest(title="x", suite=SUITE, baseline="Q8_0@recorded", labels=("Q8_0@recorded", "Q8_0")))

    def judged(c: Comparison) -> Comparison:
        return c.model_copy(update={"verdict": verdict})

    measurements = tuple(
        m.model_copy(update={"comparisons": tuple(map(judged, m.comparisons))}) for m in pair.measurements
    )
    pair = pair.model_copy(update={"measurements": measurements})
    change = file_change("Q8_0", "0" * 64, "1" * 64, _report(new, old), "Q8_0@recorded", pair)
    assert change.is_worse is is_worse
    assert change.quality is not None and change.quality.value == pytest.approx(new - old)
