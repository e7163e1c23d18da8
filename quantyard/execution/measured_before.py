"""Finds the files that were measured before with the settings of a plan, so that its report is about them too.

A report that another command made would otherwise lose files: `eval QUANT=A` would take B out of the report on A and B.
Files that were measured in another way cannot stand beside these, and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from quantyard.engines import Engine
from quantyard.execution.completed import CompletedSteps
from quantyard.plan.evaluation import add_measured_files
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile
from quantyard.store.manifest import Manifest, QuantRecord, read_manifest
from quantyard.store.stages import ModelStore


def with_files_measured_before(plan: BuildPlan, engine: Engine, store: ModelStore, repo_dir: Path) -> BuildPlan:
    """The plan whose report is also about every built file that was measured with the same settings, by the same
    versions, beside the same baseline. `measuring.left_out` names the others of the last report on this suite.
    """
    manifest = read_manifest(store.folder / "manifest.json") if plan.measuring else None
    if manifest is None or plan.measuring is None:
        return plan
    order, others = list(manifest.quants), _files_not_measured_in_run(plan, manifest, store)
    wide = add_measured_files(plan, others, order)
    completed = CompletedSteps(engine, store, repo_dir)
    completed.find(wide)
    lacking = {step.quant for step in wide.steps if step.label not in completed}
    found = add_measured_files(plan, {label: f for label, f in others.items() if label not in lacking}, order)
    assert found.measuring is not None, "as in the plan"
    last = manifest.evaluations.get(plan.measuring.suite.name)
    before = [m.file.label for m in last.measurements if m.file.label != last.baseline] if last else []
    left_out = tuple(label for label in before if label not in found.measuring.labels)
    return replace(found, measuring=replace(found.measuring, left_out=left_out))


def _files_not_measured_in_run(plan: BuildPlan, manifest: Manifest, store: ModelStore) -> Mapping[str, ModelFile]:
    """Each built file that the plan does not measure, by its label."""
    assert plan.measuring is not None, "the caller has looked"
    files = {
        label: _file_built_before_run(plan, manifest, store, record)
        for label, record in manifest.quants.items() if label not in plan.measuring.labels
    }  # fmt: skip
    return {label: file for label, file in files.items() if file is not None}


def _file_built_before_run(
    plan: BuildPlan, manifest: Manifest, store: ModelStore, record: QuantRecord
) -> ModelFile | None:
    """The file, as the stage that made it left it, or the source itself; None if it is gone or has changed."""
    artifact = plan.base.origin.artifact if isinstance(plan.base.origin, ExternalInput) else None
    if record.made_by:
        made = manifest.stages.get(record.made_by)
        stage = store.finished(record.made_by, made.key) if made else None
        artifact = stage.artifact if stage else None
    paths = [entry.path for entry in artifact.files if entry.sha256 == record.sha256] if artifact else []
    return ModelFile(ExternalInput(artifact), paths[0]) if artifact and paths else None
