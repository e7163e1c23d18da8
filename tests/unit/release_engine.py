"""The fake engine for whole releases: it leaves GGUFs that can be read, and what was measured of those very files."""

from __future__ import annotations

import json

from quantyard.plan.api_tests import contract_step_label
from quantyard.plan.steps import StageSpec
from quantyard.protocol.api_tests import ContractRequest
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.protocol.builder import QuantizeRequest
from quantyard.protocol.evaluation import ReportRequest
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.runner import file_sha256
from quantyard.quants.catalog import find_quant
from quantyard.store.artifact import Workspace
from quantyard.workflows import planning
from tests.manifests import contract_report
from tests.released import SUITE, Yard, simulated, tiny
from tests.unit.fake_engine import FakeEngine, keeps_contract, reports, writes


def _model(spec: StageSpec, space: Workspace) -> StageResult:
    """A real GGUF of the type asked for; like llama-quantize's it depends on the importance matrix and its name."""
    request = spec.request if isinstance(spec.request, QuantizeRequest) else None
    quant = request.quant if request else "BF16"
    with_matrix = request is not None and request.imatrix_file
    matrix = str(json.loads((space.in_dir / "inputs.json").read_text())["imatrix"]) if with_matrix else ""
    names = ("model.gguf",) if quant != "BF16" else ("model.gguf", "reference.json")
    result = writes(*names)(spec, space)
    path = space.out_dir / "files" / "model.gguf"
    path.write_bytes(tiny(find_quant(quant).name, made_with=matrix))
    entry = FileEntry(path="model.gguf", size_bytes=path.stat().st_size, sha256=file_sha256(path))
    return result.model_copy(update={"outputs": (entry, *result.outputs[1:])})


def _report(spec: StageSpec, space: Workspace) -> StageResult:
    """What was measured of those very files."""
    request = spec.request
    assert isinstance(request, ReportRequest)
    result, path = reports(spec, space), space.out_dir / "files" / "report.json"
    files = space.out_dir.parents[1].glob("quantize-*/files/model.gguf")
    hashes = {file.parents[1].name.rsplit("-", 1)[0].removeprefix("quantize-"): file_sha256(file) for file in files}
    found = simulated().evaluations[SUITE]
    measured = tuple(
        m.model_copy(update={"file": m.file.model_copy(update={"sha256": hashes.get(m.file.label)})})
        for m in found.measurements if m.file.label in request.labels
    )
    told = EvalReport.model_validate(found.model_dump() | {"measurements": measured, "suite": request.suite})
    path.write_text(told.model_dump_json())
    entry = FileEntry(path="report.json", size_bytes=path.stat().st_size, sha256=file_sha256(path))
    return result.model_copy(update={"outputs": (entry, *result.outputs[1:])})


def _contract(spec: StageSpec, space: Workspace) -> StageResult:
    """One promise that the model cannot keep, beside those that it does."""
    assert isinstance(spec.request, ContractRequest)
    result, path = keeps_contract()(spec, space), space.out_dir / "files" / "report.json"
    path.write_text(contract_report(spec.request.label).model_dump_json())
    entry = FileEntry(path="report.json", size_bytes=path.stat().st_size, sha256=file_sha256(path))
    return result.model_copy(update={"outputs": (entry,)})


def engine_of(yard: Yard) -> FakeEngine:
    """An engine that builds and measures; nothing of the model is there yet."""
    for path in yard.folder.iterdir():
        if path.is_file():
            path.unlink()
    labels, tests = (
        ("convert", "quantize Q8_0", "quantize Q4_K_M"),
        (contract_step_label("Q8_0"), contract_step_label("Q4_K_M")),
    )
    made = FakeEngine(behaviours=dict.fromkeys(labels, _model) | {"report": _report} | dict.fromkeys(tests, _contract))
    yard.monkeypatch.setattr(planning, "choose_engine", lambda *_: (made, "asked for"))
    return made
