"""An engine that runs no process: it writes what a stage would, and can fail the ways a stage can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.contract import ExitCode, FileEntry, StageError, StageResult
from pipeline.engines import OnNote, OnProgress
from pipeline.plan import StageSpec
from pipeline.stage import sha256_of
from pipeline.store import Artifact, Workspace

Behaviour = Callable[[StageSpec, Workspace], StageResult]


def writes(*names: str) -> Behaviour:
    """A stage that leaves these files and ends well."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        folder = space.out_dir / "files"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(f"{name} of {spec.label}")
        entries = tuple(
            FileEntry(path=n, size_bytes=(folder / n).stat().st_size, sha256=sha256_of(folder / n)) for n in names
        )
        facts = {"bits_per_weight": 4.5}
        return StageResult(stage=spec.row.name, exit_code=ExitCode.DONE, outputs=entries, facts=dict(facts))

    return behave


def fails(code: ExitCode, leaves: str = "half.gguf") -> Behaviour:
    """A stage that leaves half a file and ends with this code."""

    def behave(spec: StageSpec, space: Workspace) -> StageResult:
        (space.out_dir / "files").mkdir(exist_ok=True)
        (space.out_dir / "files" / leaves).write_text("half")
        error = StageError(kind="planned", message="It was told to fail.", hint="Tell it not to.")
        return StageResult(stage=spec.row.name, exit_code=code, error=error)

    return behave


def interrupted(spec: StageSpec, space: Workspace) -> StageResult:
    """A stage during which somebody presses Ctrl-C."""
    (space.out_dir / "files").mkdir(exist_ok=True)
    (space.out_dir / "files" / "half.gguf").write_text("half")
    raise KeyboardInterrupt


@dataclass
class FakeEngine:
    """Remembers what it ran."""

    image: str | None = "image-1"
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    name: str = "fake"

    def identity(self, image: str) -> str | None:
        return self.image

    def prepare(self, image: str, on_note: OnNote) -> None:
        self.prepared.append(image)
        self.image = self.image or "image-built"

    def describe(self) -> dict[str, str]:
        return {"engine": "fake"}

    def run(
        self, spec: StageSpec, space: Workspace, inputs: Mapping[str, Artifact], on_progress: OnProgress
    ) -> StageResult:
        self.ran.append(spec.label)
        assert all(artifact.folder.is_dir() for artifact in inputs.values())
        default = writes("model.gguf", "reference.json") if spec.row.name != "verify" else writes()
        result = self.behaviours.get(spec.label, default)(spec, space)
        (space.out_dir / "result.json").write_text(result.model_dump_json())
        return result
