"""Writes the manifest while a plan runs, and publishes files next to it. Each step is recorded as soon as it ends, in
the plan's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from quantyard.engines import Engine
from quantyard.plan.build import PROJECTOR
from quantyard.plan.report_step import REPORT, plan_suite_folder
from quantyard.plan.steps import BuildPlan, ExternalInput, StageSpec, Step, Target
from quantyard.protocol.base import StageResult
from quantyard.protocol.builder import QuantizeRequest
from quantyard.protocol.facts import ProjectorFacts, VerifyFacts
from quantyard.protocol.narrow_rows import NarrowRows
from quantyard.quants.catalog import Quant
from quantyard.quants.narrow_rows import find_narrow_rows, narrow_rows_of_counts
from quantyard.records import dataclass
from quantyard.store.artifact import FinishedStage
from quantyard.store.manifest import (
    ImatrixRecord,
    Manifest,
    ProjectorRecord,
    QuantRecord,
    SourceRecord,
    StageRecord,
    changing_manifest,
    parse_manifest,
    salvaged_manifest,
    write_manifest,
)
from quantyard.store.stages import ModelStore
from quantyard.store.visible_files import copy_file_to_store, copy_stored_outputs, link_stored_file, set_file_aside

if TYPE_CHECKING:  # a build measures and serves nothing
    from quantyard.protocol.api_tests import ContractReport
    from quantyard.protocol.measurements import EvalReport

R = TypeVar("R")


@dataclass(frozen=True)
class BuiltFile:
    """One GGUF of the build, published."""

    quant: str
    path: Path
    record: QuantRecord

    @property
    def note(self) -> str:
        """What its name does not say; "" where there is nothing."""
        return self.record.narrow_rows.sentence if self.record.narrow_rows else ""


@dataclass(frozen=True)
class Measured:
    """The report on a plan's suite, and the folder of the report and its plots."""

    report: EvalReport
    folder: Path


@dataclass
class ManifestRecords:
    """Updates the manifest of one model for one plan. Not thread-safe."""

    plan: BuildPlan
    engine: Engine
    store: ModelStore
    on_note: Callable[[str], None] = lambda _text: None
    _parsed: tuple[bytes, Manifest] | None = field(default=None, init=False)  # the file as last read

    def read(self) -> Manifest:
        """The manifest of the store, or a new one. A file that has not changed is not parsed again."""
        source = self.plan.source
        record = SourceRecord(
            kind=source.kind, title=source.title, repo_id=source.repo_id, revision=source.revision,
            commit=source.model.commit, license=source.license, files=list(source.files),
            gguf_file=source.gguf_file, dtypes=dict(source.dtypes), card=source.card,
            quantization=source.quantization.title if source.quantization else "",
        )
        path = self.store.folder / "manifest.json"
        try:
            manifest = self._parse(path)
        except FileNotFoundError:
            manifest = Manifest(source=record)
        except (OSError, ValueError) as error:
            manifest = self._after_damage(path, error, record)
        # What the Hub says of license and access can change at the same commit.
        manifest.source = manifest.source.model_copy(update={"license": source.license, "card": source.card})
        return manifest

    def _parse(self, path: Path) -> Manifest:
        text = path.read_bytes()
        if self._parsed is None or self._parsed[0] != text:
            self._parsed = text, parse_manifest(text, str(path))
        return self._parsed[1]

    def _after_damage(self, path: Path, error: Exception, source: SourceRecord) -> Manifest:
        """A new manifest with the intact records of a damaged one. Keeps the damaged file and tells the user."""
        try:
            manifest, lost = salvaged_manifest(path.read_bytes(), source)
        except OSError:
            manifest, lost = Manifest(source=source), ["everything"]
        aside = set_file_aside(path)
        self.write(manifest)
        kept = f"It is kept as {aside.name}, and a new one replaces it." if aside else "A new one replaces it."
        self.on_note(
            f"warning: {path} cannot be read: {error}. {kept} Missing from the new manifest: "
            f"{', '.join(lost) or 'nothing'}. The command that made a file records it again."
        )
        return manifest

    def write(self, manifest: Manifest) -> None:
        """Write the manifest atomically."""
        write_manifest(self.store.folder / "manifest.json", manifest)

    @contextmanager
    def changing(self) -> Iterator[Manifest]:
        """The manifest, to be changed; it is written at the end. What other processes write meanwhile stays."""
        with changing_manifest(self.store.folder / "manifest.json"):
            manifest = self.read()
            yield manifest
            self.write(manifest)

    def stage(self, step: Step, spec: StageSpec, result: StageResult) -> None:
        """Record a successful step; what is about files of others is not the model's record, and shards are in that of
        the step that puts them together.
        """
        if self._is_foreign(step) or step.whole:
            return
        with self.changing() as manifest:
            self._add(manifest, step, self._record_of(step, spec, result, datetime.now(UTC)))

    def publish(self, target: Target, finished: Mapping[str, FinishedStage]) -> BuiltFile:
        """Publish a verified file under its final name."""
        verified = VerifyFacts.read(finished[target.verified_by].result.facts)
        name, origin = target.file.path, target.file.origin
        if isinstance(origin, ExternalInput):
            made, path = origin.artifact, origin.artifact.folder / name
        else:
            made = finished[origin.step].artifact
            path = self.store.folder / f"{self.plan.source.model.name}-{target.quant.name}.gguf"
            link_stored_file(made.folder / name, path)
        entry = next(f for f in made.files if f.path == name)
        record = QuantRecord(
            file=path.name, size_bytes=entry.size_bytes, sha256=entry.sha256 or "",
            bits_per_weight=verified.bits_per_weight, made_by=target.made_by,
            verified_by=target.verified_by, imatrix=self._imatrix(target, finished),
            narrow_rows=self._narrow_rows(target.quant, verified),
        )
        self._quant(target.quant.name, record)
        return BuiltFile(target.quant.name, path, record)

    def _narrow_rows(self, quant: Quant, verified: VerifyFacts) -> NarrowRows | None:
        """What the file's name does not say: by the model's shapes, or as recorded, or by the file where they are not
        known.
        """
        if any(self.plan.source.type_counts(quant)):
            return find_narrow_rows(quant, self.plan.source.type_counts)
        before = self.read().quants.get(quant.name)
        if before is not None and before.narrow_rows is not None:
            return before.narrow_rows
        return narrow_rows_of_counts(quant, verified.types, verified.bits_per_weight, by_weight=False)

    def _imatrix(self, target: Target, finished: Mapping[str, FinishedStage]) -> ImatrixRecord | None:
        """Publish the importance matrix next to the file: it is needed to rebuild the file."""
        step = next((step for step in self.plan.steps if step.label == target.made_by), None)
        if step is None or "imatrix" not in step.inputs:
            return None
        assert isinstance(step.request, QuantizeRequest), "no other stage takes a matrix"
        origin, ours = step.inputs["imatrix"], self.plan.source.model.name
        artifact = origin.artifact if isinstance(origin, ExternalInput) else finished[origin.step].artifact
        entry = next(f for f in artifact.files if f.path == step.request.imatrix_file)
        name = _imatrix_name_in_manifest(self.read(), ours, target.quant.name, entry.sha256 or "")
        keep = copy_file_to_store if isinstance(origin, ExternalInput) else link_stored_file
        keep(artifact.folder / entry.path, self.store.folder / name)
        return ImatrixRecord(
            file=name, size_bytes=entry.size_bytes, sha256=entry.sha256 or "", given=list(artifact.files)
        )

    def publish_projector(self, finished: Mapping[str, FinishedStage]) -> tuple[Path, ...]:
        """Publish what reads pictures or sound beside the files, and record it, or that there is none.

        Returns:
            Its files; the first is the one to serve.
        """
        found, manifest = self.plan.projector, self.read()
        if not self.plan.source.config and manifest.projector:  # as recorded, since the Hub is out of reach
            return tuple(self.store.folder / entry.path for entry in manifest.projector.files)
        record = ProjectorRecord(media=list(found.media), left_out=found.left_out) if found else None
        paths = list[Path]()
        if PROJECTOR in finished:
            artifact, facts = finished[PROJECTOR].artifact, ProjectorFacts.read(finished[PROJECTOR].result.facts)
            record = ProjectorRecord(media=facts.media, made_by=PROJECTOR)
            for entry in sorted(artifact.files, key=lambda entry: "Q8_0" in entry.path):
                name = f"mmproj-{self.plan.source.model.name}-{entry.path.removeprefix('mmproj-')}"
                paths.append(link_stored_file(artifact.folder / entry.path, self.store.folder / name))
                record.files.append(entry.model_copy(update={"path": name}))
        if manifest.projector != record:
            with self.changing() as manifest:
                manifest.projector = record
        return tuple(paths)

    def publish_report(self, finished: Mapping[str, FinishedStage]) -> Measured | None:
        """Publish the report on the plan's suite, if there is one: as a folder, and as data in the manifest."""
        if self.plan.measuring is None or REPORT not in finished:
            return None
        from quantyard.plan.evaluation import read_planned_report  # imported late: a build measures nothing

        suite = self.plan.measuring.suite.name
        report = read_planned_report(finished[REPORT])
        folder = self.store.folder / plan_suite_folder(suite, is_foreign=bool(self.plan.foreign))
        measured = Measured(report, copy_stored_outputs(finished[REPORT].artifact, folder))
        if self.plan.foreign:
            return measured
        if self.read().evaluations.get(suite) != measured.report:
            with self.changing() as manifest:
                manifest.evaluations[suite] = measured.report
        return measured

    def _is_foreign(self, step: Step) -> bool:
        """Whether a step is about files that somebody else made, or about them too."""
        return step.quant in self.plan.foreign or (bool(self.plan.foreign) and step.label == REPORT)

    def publish_contracts(self, finished: Mapping[str, FinishedStage]) -> list[ContractReport]:
        """Record the reports of the plan's API tests."""
        if not self.plan.contracts:
            return []
        from quantyard.plan.api_tests import contract_step_label, read_planned_contract  # imported late: as above

        tested = [quant for quant in self.plan.contracts if contract_step_label(quant) in finished]
        found = {quant: read_planned_contract(finished[contract_step_label(quant)].artifact.folder) for quant in tested}
        contracts = self.read().contracts
        if contracts != contracts | found:
            with self.changing() as manifest:
                manifest.contracts |= found
        return list(found.values())

    def finished(self, finished: Mapping[str, FinishedStage], specs: Mapping[str, StageSpec]) -> None:
        """Record the steps that were finished before this run. The manifest can lack one if another plan has since run
        a step of that label, or if the run that finished it was killed before it could write.
        """
        manifest, steps = self.read(), [step for step in self.plan.steps if step.label in finished and not step.whole]
        known = [step for step in steps if self.engine.identity(step.row.image) and not self._is_foreign(step)]
        others = [step for step in known if _manifest_stage_key(manifest, step.label) != specs[step.label].key]
        if not others:
            return
        with self.changing() as manifest:
            for step in others:
                found = finished[step.label]
                made_at = datetime.fromtimestamp(found.artifact.folder.stat().st_mtime, UTC)
                self._add(manifest, step, self._record_of(step, specs[step.label], found.result, made_at))

    def _quant(self, name: str, record: QuantRecord) -> None:
        if self.read().quants.get(name) != record:
            order = [target.quant.name for target in self.plan.targets]
            with self.changing() as manifest:
                manifest.quants = placed_record(manifest.quants, name, record, order)

    def _add(self, manifest: Manifest, step: Step, record: StageRecord) -> None:
        order = [each.label for each in self.plan.steps]
        manifest.stages = placed_record(manifest.stages, step.label, record, order)

    def _record_of(self, step: Step, spec: StageSpec, result: StageResult, finished_at: datetime) -> StageRecord:
        return StageRecord(
            key=spec.key, request=spec.request.model_dump(mode="json"), inputs=dict(spec.inputs),
            outputs=list(result.outputs), facts=result.facts, tools=result.tools,
            argv=[list(argv) for argv in result.argv], duration_s=result.duration_s,
            ran_by=_tools_of_record(result) or self.engine.describe(step.row.image), cpu=result.cpu,
            finished_at=finished_at, quant=step.quant,
            node=result.node if result.node.cpu else None, shard_nodes=list(result.shard_nodes),
        )


def _tools_of_record(result: StageResult) -> dict[str, str]:
    """The tools of the node that ran a stage, and the node; {} if this machine ran it."""
    found = result.ran_on
    return {**found.tools, "host": found.host, "job": found.job} if found else {}


def _imatrix_name_in_manifest(manifest: Manifest, model: str, quant: str, sha256: str) -> str:
    """The file name for a matrix; files of one model can have different matrices."""
    others = [record.imatrix for name, record in manifest.quants.items() if record.imatrix and name != quant]
    if known := next((other.file for other in others if other.sha256 == sha256), None):
        return known
    name = f"{model}.imatrix.gguf"
    return name if name not in {other.file for other in others} else f"{model}.imatrix-{sha256[:12]}.gguf"


def _manifest_stage_key(manifest: Manifest, label: str) -> str:
    return manifest.stages[label].key if label in manifest.stages else ""


def placed_record(records: Mapping[str, R], name: str, record: R, order: Sequence[str]) -> dict[str, R]:
    """The records with this one at its old place, else after the last one that precedes it in `order`, so that the
    manifest does not depend on which concurrent step ends first.
    """
    if name in records:
        return {**records, name: record}
    before = set(order[: order.index(name)]) if name in order else set(records)
    names = list(records)
    after = [at for at, each in enumerate(names) if each in before]
    names.insert(after[-1] + 1 if after else 0 if set(names) & set(order) else len(names), name)
    return {each: record if each == name else records[each] for each in names}
