"""An engine that runs no process: it writes what a stage would, and can fail the ways a stage can."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from quantyard.engines import OnNote, OnProgress
from quantyard.engines.capacity import Capacity, engine_machine_capacity
from quantyard.hardware.machine import cpu_name, machine_memory_bytes
from quantyard.plan.steps import StageSpec
from quantyard.protocol.api_tests import CheckRecord, ContractReport, ContractRequest
from quantyard.protocol.base import ExitCode, FileEntry, NodeFacts, StageError, StageResult
from quantyard.protocol.builder import FetchRequest
from quantyard.protocol.evaluation import EvaluateRequest, ReportRequest, SharedBaselineRequest
from quantyard.protocol.runner import file_sha256
from quantyard.store.artifact import Artifact, Workspace
from tests.unit.fake_report import report_of

Behaviour = Callable[[StageSpec, Workspace], StageResult]


def writes(*names: str) -> Behaviour:
    """A stage that leaves these files and ends well."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        folder = space.out_dir / "files"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(f"{name} of {spec.label}")
        return _done(spec, space, names)

    return behave


def fetches(spec: StageSpec, space: Workspace) -> StageResult:
    """The files that were asked for, of their sizes. What is in them nobody knows."""
    assert isinstance(spec.request, FetchRequest)
    for entry in spec.request.files:
        path = space.out_dir / "files" / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}".ljust(entry.size_bytes))
    return _done(spec, space, tuple(entry.path for entry in spec.request.files))


def _done(spec: StageSpec, space: Workspace, names: tuple[str, ...]) -> StageResult:
    paths = [(name, space.out_dir / "files" / name) for name in names]
    entries = tuple(FileEntry(path=n, size_bytes=p.stat().st_size, sha256=file_sha256(p)) for n, p in paths)
    return StageResult(
        stage=spec.row.name, exit_code=ExitCode.DONE, outputs=entries, facts={"bits_per_weight": 4.5}
    )


def evaluates(spec: StageSpec, space: Workspace) -> StageResult:
    """An evaluation, or one shard of it."""
    assert isinstance(spec.request, EvaluateRequest)
    return writes("shard.json" if spec.request.shard else "evaluation.json")(spec, space)


def diverges(spec: StageSpec, space: Workspace) -> StageResult:
    """The divergence of one file, or of all that are read in step."""
    request = spec.request
    assert isinstance(request, SharedBaselineRequest)
    labels = [request.label, *(member.label for member in request.others)]
    labels += [request.baseline_label] if request.baseline_label else []
    names = [f"{label}/{request.stage}.json" for label in labels] if request.is_joined else [f"{request.stage}.json"]
    for name in names:
        (space.out_dir / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (space.out_dir / "files" / name).write_text(f"{name} of {spec.label}")
    result = _done(spec, space, tuple(names))
    facts = {label: {"perplexity": 9.0, "mean_kld": 0.01} for label in labels}
    return result.model_copy(update={"facts": facts if request.is_joined else facts[request.label]})


def reports(spec: StageSpec, space: Workspace) -> StageResult:
    """The last stage of a measuring: a report on the files it was asked about, with a plot."""
    assert isinstance(spec.request, ReportRequest)
    folder = space.out_dir / "files"
    (folder / "plots").mkdir(parents=True)
    (folder / "report.json").write_text(report_of(spec.request).model_dump_json())
    (folder / "report.md").write_text(f"# {spec.request.title}")
    (folder / "plots" / "size.svg").write_text("<svg/>")
    return _done(spec, space, ("report.json", "report.md", "plots/size.svg"))


def keeps_contract(*broken: str) -> Behaviour:
    """A contract test of two checks; those named are broken."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        assert isinstance(spec.request, ContractRequest)
        checks = tuple(
            CheckRecord(
                name=name, promise="is kept", status="failed" if name in broken else "passed", finding="1 of 1",
                duration_s=0.1,
            )
            for name in ("health", "chat")
        )
        report = ContractReport(label=spec.request.label, server="fake", model="m", checks=checks, duration_s=0.2)
        (space.out_dir / "files").mkdir(exist_ok=True)
        (space.out_dir / "files" / "report.json").write_text(report.model_dump_json())
        return _done(spec, space, ("report.json",))

    return behave


def fails(code: ExitCode, leaves: str = "half.gguf") -> Behaviour:
    """A stage that leaves half a file and ends with this code."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        (space.out_dir / "files").mkdir(exist_ok=True)
        (space.out_dir / "files" / leaves).write_text("half")
        error = StageError(kind="planned", message="It was told to fail.", hint="Tell it not to.")
        return StageResult(stage=spec.row.name, exit_code=code, error=error)

    return behave


def agrees(spec: StageSpec, space: Workspace) -> StageResult:
    """A twin that both sides compute alike."""
    facts = {"status": "proved", "finding": "Computes what Transformers computes: max |Δ| 1e-5."}
    return _done(spec, space, ()).model_copy(update={"facts": facts})


def interrupted(spec: StageSpec, space: Workspace) -> StageResult:
    """A stage during which somebody presses Ctrl-C."""
    (space.out_dir / "files").mkdir(exist_ok=True)
    (space.out_dir / "files" / "half.gguf").write_text("half")
    raise KeyboardInterrupt


_DEFAULTS: Mapping[str, Behaviour] = {
    "fetch": fetches, "twin": agrees, "parity": agrees, "convert": writes("model.gguf", "reference.json"),
    "calibrate": writes("imatrix.gguf", "calibration.txt"), "rounding": writes("rounding.json"),
    "lora": writes("adapter.gguf"), "verify": writes(), "verify_foreign": writes(), "datasets": writes("datasets.json"),
    "evaluate": evaluates, "divergence": diverges, "domains": diverges, "speed": writes("speed.json"),
    "report": reports, "contract": keeps_contract(), "behaviour": writes("behaviour.json"),
    "cache": writes("cache.json"), "openvino": writes("openvino.json"),
}  # fmt: skip


@dataclass
class FakeEngine:
    """Remembers what it ran."""

    image: str | None = "image-1"
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    told: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)  # inputs.json of each stage
    cpus: Mapping[str, str] = field(default_factory=dict)  # label → the CPU that its result names
    cpu: str = field(default_factory=cpu_name)
    name: str = "fake"
    memory_bytes: int = field(default_factory=machine_memory_bytes)
    stopped: threading.Event = field(default_factory=threading.Event)

    def capacity(self) -> Capacity:
        return engine_machine_capacity(self.cpu, os.cpu_count() or 1, self.memory_bytes)

    def identity(self, image: str) -> str | None:
        return self.image or ("image-built" if image in self.prepared else None)

    def prepare(self, image: str, on_note: OnNote) -> None:
        self.prepared.append(image)

    def describe(self, image: str) -> dict[str, str]:
        return {"engine": "fake"}

    def converter_list(self) -> str | None:
        return None

    def stop(self) -> None:
        self.stopped.set()

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        self.ran.append(spec.label)
        assert all(artifact.folder.is_dir() for artifact in inputs.values())
        self.told[spec.label] = json.loads((space.in_dir / "inputs.json").read_text())
        default = _DEFAULTS.get(spec.row.name, writes("model.gguf"))
        result = self.behaviours.get(spec.label, default)(spec, space)
        cpu = self.cpus.get(spec.label, "")
        result = result.model_copy(update={"cpu": cpu, "node": NodeFacts(cpu=cpu)})
        (space.out_dir / "result.json").write_text(result.model_dump_json())
        return result
