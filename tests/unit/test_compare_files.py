"""`compare` on an engine that writes what stages would: files of others beside ours in one report, page and record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quantyard
from quantyard.cli import main
from quantyard.errors import BadRequest, FileTooLarge, StageFailed
from quantyard.metrics.removals import report_removals
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.divergence_results import DomainDivergence, Domains
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.evaluation import ReportRequest
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Workspace
from quantyard.store.comparison import ComparisonRecord
from quantyard.workflows import planning
from quantyard.workflows.compare import ComparedFiles
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.hub_server import HubServer
from tests.outputs import check_output
from tests.unit.conftest import SUITE
from tests.unit.fake_engine import FakeEngine, fails, writes
from tests.unit.fake_report import report_of

pytestmark = pytest.mark.commands
MODEL = gguf(SMALL_METADATA, [TensorSpec("token_embd.weight", (32, 4))])
LARGE = gguf(SMALL_METADATA, [TensorSpec("token_embd.weight", (32, 4000))])


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_source: Source) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (fake, "asked for"))
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "artifacts"))
    return fake


@pytest.fixture
def them(tmp_path: Path) -> Path:
    folder = tmp_path / "them"
    folder.mkdir()
    for name in ("m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf"):
        (folder / name).write_bytes(MODEL)
    return folder


def compared(*places: Path | str, **settings: Any) -> ComparedFiles:
    return quantyard.compare("x", [str(place) for place in places], **{"suite": "smoke", "files": "all", **settings})


def finds(*findings: tuple[str, str]) -> Callable[[StageSpec, Workspace], StageResult]:
    """A check that ends with these findings."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        facts = {"findings": [{"kind": kind, "text": text} for kind, text in findings], "worst_error_ratio": 1.25}
        return writes()(spec, space).model_copy(update={"facts": facts})

    return behave


def test_files_of_others_stand_beside_ours_and_the_manifest_does_not_know_them(engine: FakeEngine, them: Path) -> None:
    quantyard.evaluate("x", quant="Q4_K_M", suite="smoke")
    engine.behaviours["verify_foreign UD-Q4_K_XL@them"] = finds(("other-template", "It ends otherwise."))
    engine.ran.clear()
    found = compared(them)
    labels = [m.file.label for m in found.report.measurements]
    assert labels == ["BF16", "Q4_K_M", "Q4_K_M@them", "UD-Q4_K_XL@them"]
    assert "evaluate Q4_K_M" not in engine.ran, "what was measured is not measured again"
    ours, first, second = found.record.files
    assert (ours.made_by, first.made_by) == ("us", "others")
    assert (first.place, first.parts[0].path) == (str(them), "m-Q4_K_M.gguf")
    assert [finding.kind for finding in second.findings] == ["other-template"] and second.worst_error_ratio == 1.25
    manifest = found.built.manifest
    assert not any("@them" in label for label in manifest.stages)
    assert [m.file.label for m in manifest.evaluations["smoke"].measurements] == ["BF16", "Q4_K_M"]
    assert ComparisonRecord.model_validate_json(found.record_path.read_text()) == found.record
    page = found.page.read_text()
    assert str(them) in page and first.parts[0].sha256[:12] in page and "It ends otherwise." in page


def test_a_second_comparison_has_nothing_to_do(engine: FakeEngine, them: Path) -> None:
    first = compared(them)
    engine.ran.clear()
    again = compared(them)
    assert engine.ran == [] and again.page.read_text() == first.page.read_text()


def test_a_file_that_is_refused_is_named_and_the_others_are_measured(
    engine: FakeEngine, them: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.behaviours["verify_foreign Q4_K_M@them"] = fails(ExitCode.BAD_REQUEST)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--model=x", f"--repos={them},./nowhere", "--files=all", "--suite=smoke", "--json"])
    said = json.loads(capsys.readouterr().out)
    check_output("compare", said)
    assert ended.value.code == ExitCode.BAD_REQUEST
    assert {(out["label"], out["kind"], out["exit_code"]) for out in said["not_compared"]} == {
        ("./nowhere", "bad-source", 2), ("Q4_K_M@them", "planned", 2)}  # fmt: skip
    assert [file["label"] for file in said["files"]] == ["Q4_K_M", "UD-Q4_K_XL@them"]
    assert not any(label.startswith("evaluate Q4_K_M@") for label in engine.ran)


def test_if_no_file_of_others_can_be_measured_the_command_ends_with_the_first_reason(
    engine: FakeEngine, them: Path, tmp_path: Path
) -> None:
    for label in ("Q4_K_M@them", "UD-Q4_K_XL@them"):
        engine.behaviours[f"verify_foreign {label}"] = fails(ExitCode.UNSUPPORTED_MODEL)
    with pytest.raises(StageFailed):
        compared(them)
    with pytest.raises(BadRequest, match="no file or folder"):
        compared(tmp_path / "gone.gguf")


def test_a_file_of_the_hub_is_fetched_at_its_commit(engine: FakeEngine) -> None:
    with HubServer() as hub:
        repo = hub.add_repo("them/m-GGUF", files={"m-Q4_K_M.gguf": MODEL, "m-Q8_0.gguf": MODEL, "README.md": b"hi"})
        engine.behaviours["fetch Q4_K_M@them"] = writes_model
        found = compared("them/m-GGUF", files="", quant="Q4_K_M", hf_endpoint=hub.endpoint)
    (theirs,) = (file for file in found.record.files if file.made_by == "others")
    assert (theirs.revision, [part.path for part in theirs.parts]) == (repo.commit, ["m-Q4_K_M.gguf"])
    assert theirs.label == "Q4_K_M@them"


def writes_model(spec: StageSpec, space: Workspace) -> StageResult:
    (space.out_dir / "files").mkdir(exist_ok=True)
    (space.out_dir / "files" / "m-Q4_K_M.gguf").write_bytes(MODEL)
    done = writes()(spec, space)
    return done.model_copy(update={"outputs": spec.request.files})  # type: ignore[attr-defined]


def test_a_file_that_the_memory_cannot_hold_is_left_out(engine: FakeEngine, them: Path) -> None:
    (them / "m-Q8_0.gguf").write_bytes(LARGE)
    engine.memory_bytes = len(LARGE) - 1
    found = compared(them)
    error = found.failures["Q8_0@them"]
    assert isinstance(error, FileTooLarge) and error.code == ExitCode.RESOURCES and "of memory" in error.message
    assert {file.label for file in found.record.files} == {"Q4_K_M", "Q4_K_M@them", "UD-Q4_K_XL@them"}


def test_files_of_the_hub_that_the_disk_cannot_hold_are_left_out_the_largest_first(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantyard.evaluate("x", quant="Q4_K_M", suite="smoke")
    free = 64 * 2**20 + 100_000
    monkeypatch.setattr("quantyard.forecast.cost.shutil.disk_usage", lambda _path: shutil._ntuple_diskusage(0, 0, free))  # type: ignore[attr-defined]
    with HubServer() as hub:
        hub.add_repo("them/m-GGUF", files={"m-Q4_K_M.gguf": MODEL, "m-Q8_0.gguf": LARGE})
        engine.behaviours["fetch Q4_K_M@them"] = writes_model
        found = compared("them/m-GGUF", hf_endpoint=hub.endpoint)
    assert [file.label for file in found.record.files] == ["Q4_K_M", "Q4_K_M@them"]
    assert "of disk are there for all" in found.failures["Q8_0@them"].message and found.failures["Q8_0@them"].code == 5


def test_the_reasons_against_a_file_have_names() -> None:
    request = ReportRequest(title="x", suite=SUITE, baseline="BF16", labels=("BF16", "A", "B", "C"))
    figures = {"A": (100, 0.010), "B": (120, 0.030), "C": (130, 0.00999)}  # B is beaten; C is not measurably better

    def placed(m: Any) -> Any:
        if m.file.label not in figures:
            return m
        size, kld = figures[m.file.label]
        mean_kld = m.divergence.mean_kld.model_copy(update={"value": kld})
        divergence = m.divergence.model_copy(update={"mean_kld": mean_kld})
        return m.model_copy(
            update={"file": m.file.model_copy(update={"size_bytes": size}), "divergence": divergence, "speed": None}
        )

    report = report_of(request)
    removals = report_removals(report.model_copy(update={"measurements": tuple(map(placed, report.measurements))}))
    named = {label: {(one.name, one.other) for one in reasons} for label, reasons in removals.items()}
    assert named["A"] == set() and ("DOMINATED_BY", "A") in named["B"] and named["C"] == {("WITHIN_NOISE_OF", "A")}


def test_of_two_files_of_equal_quality_the_one_with_the_worse_domain_has_a_reason() -> None:
    request = ReportRequest(title="x", suite=SUITE, baseline="BF16", labels=("BF16", "A", "B"))

    def domains(label: str, kld: float) -> Domains:
        found = DomainDivergence(
            domain="tools", form="text", n_documents=9, n_tokens=900, n_read=900, n_bytes=4000,
            perplexity=Estimate(value=9.0, stderr=0.1), mean_kld=Estimate(value=kld, stderr=0.001, df=8),
        )
        return Domains(label=label, domains=(found,))

    klds = {"A": 0.02, "B": 0.05}
    report = report_of(request)
    measurements = tuple(
        m.model_copy(update={"domains": domains(m.file.label, klds[m.file.label])}) if m.file.label in klds else m
        for m in report.measurements
    )
    removals = report_removals(report.model_copy(update={"measurements": measurements}))
    (reason,) = (reason for reason in removals["B"] if reason.name == "WORSE_DOMAIN_THAN")
    assert reason.other == "A" and "tools" in reason.text and removals["A"] == ()
