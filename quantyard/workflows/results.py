"""What workflows return: plans and builds as objects. Sizes are bytes, times are seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantyard.errors import StageFailed
from quantyard.execution.manifest_writer import BuiltFile, Measured
from quantyard.execution.runner import PlanRunner
from quantyard.forecast.cost import Cost
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.api_tests import ContractReport
from quantyard.protocol.measurements import EvalReport
from quantyard.store.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Planned:
    """What a command would run, need and take.

    Attributes:
        finished: labels of the steps that need not run again.
        cost: download, disk, memory and time of the rest.
        engine: `docker` or `local`; `engine_reason` says why this one.
        quants_setting: the setting that names the files, for messages.
    """

    plan: BuildPlan
    finished: frozenset[str]
    cost: Cost
    engine: str
    engine_reason: str
    artifacts: Path
    quants_setting: str = "QUANT"

    @property
    def to_run(self) -> tuple[str, ...]:
        """Labels of the steps that are left, in their order."""
        return tuple(step.label for step in self.plan.steps if step.label not in self.finished)

    def check_disk(self) -> None:
        """Raise where the disk is too small.

        Raises:
            NotEnoughDisk: the plan needs more than is free.
        """
        self.cost.check_disk(self.artifacts, self.quants_setting)


@dataclass(frozen=True)
class Built:
    """What a build ends with.

    Attributes:
        files: each GGUF with its path and its record of the manifest, in the order asked for.
        ran: labels of the steps that ran now; empty where all of it was done before.
        folder: the model's, in the store: the files, `manifest.json`, `eval/`.
        measured: the evaluation's report and its folder; None where nothing was to be measured.
        contracts: what the API tests found, one report for each file that was tested.
        failures: where a failing file leaves the others alone, the error of each failed step, by label.
    """

    plan: BuildPlan
    files: tuple[BuiltFile, ...]
    ran: tuple[str, ...]
    folder: Path
    measured: Measured | None = None
    contracts: tuple[ContractReport, ...] = ()
    failures: Mapping[str, StageFailed] = field(default_factory=dict)

    @property
    def manifest_path(self) -> Path:
        """`manifest.json` of the model."""
        return self.folder / "manifest.json"

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is on disk now."""
        found = read_manifest(self.manifest_path)
        assert found is not None, "the build has written it"
        return found

    @property
    def report(self) -> EvalReport | None:
        """What was measured; None where nothing was to be."""
        return self.measured.report if self.measured else None


def built_result(runner: PlanRunner, files: Sequence[BuiltFile]) -> Built:
    """The build that a runner has run."""
    return Built(
        plan=runner.plan, files=tuple(files), ran=tuple(runner.ran), folder=runner.store.folder,
        measured=runner.measured, contracts=tuple(runner.contracts), failures=dict(runner.failures),
    )
