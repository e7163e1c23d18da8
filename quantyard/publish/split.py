"""Plans the splitting of release files that are larger than the Hub allows, and finds their parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quantyard.execution.runner import PlanRunner
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Step
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.builder import SplitRequest
from quantyard.publish.files import PublishedFile, kept_release_file
from quantyard.publish.release import Release
from quantyard.sources.resolve import Source
from quantyard.store.artifact import Artifact


def _release_split_label(quant: str) -> str:
    return f"split {quant}"


def split_release_plan(release: Release, source: Source, max_size_bytes: int) -> BuildPlan | None:
    """A step for each file above the limit, else None. The plan has no targets: see `split_release_parts`."""
    steps = [
        _release_split_step(quant, release.paths[quant], record.sha256, record.size_bytes, max_size_bytes)
        for quant, record in release.manifest.quants.items() if record.size_bytes > max_size_bytes
    ]
    if not steps:
        return None
    base = ModelFile(next(iter(steps[0].inputs.values())), "")
    return BuildPlan(source, tuple(steps), base, (), "auto", "")


def _release_split_step(quant: str, path: Path, sha256: str, size_bytes: int, max_size_bytes: int) -> Step:
    files = (FileEntry(path=path.name, size_bytes=size_bytes, sha256=sha256),)
    whole = Artifact(files_digest(files), files, path.parent, whole_folder=False)
    request = SplitRequest(model_file=path.name, prefix=path.stem, max_size_bytes=max_size_bytes)
    return Step(
        _release_split_label(quant), STAGES["split"], request, {"source": ExternalInput(whole)}, size_bytes, quant
    )


def split_release_parts(runner: PlanRunner, release: Release) -> Mapping[str, tuple[PublishedFile, ...]]:
    """The parts that the finished plan left, by quant."""
    labels = {step.label for step in runner.plan.steps}
    return {
        quant: _release_parts(runner, _release_split_label(quant))
        for quant in release.quants
        if _release_split_label(quant) in labels
    }


def _release_parts(runner: PlanRunner, label: str) -> tuple[PublishedFile, ...]:
    folder, files = runner.output(label), runner.outputs(label)
    return tuple(kept_release_file(f.path, folder / f.path, str(f.sha256)) for f in files)
