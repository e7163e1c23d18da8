"""The results of workflows: plans and builds as objects. Sizes are bytes, times are seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.errors import StageFailed
from quantyard.execution.manifest_writer import BuiltFile, Measured
from quantyard.execution.runner import PlanRunner
from quantyard.forecast.cost import Cost
from quantyard.plan.steps import BuildPlan
from quantyard.protocol.facts import TwinFacts
from quantyard.records import dataclass
from quantyard.requests import QUEUES
from quantyard.store.manifest import Manifest, read_manifest

if TYPE_CHECKING:  # a build plans no evaluation
    from quantyard.plan.power import PlannedPower
    from quantyard.protocol.api_tests import ContractReport
    from quantyard.protocol.measurements import EvalReport


@dataclass(frozen=True)
class Planned:
    """A plan with its cost.

    Attributes:
        finished: labels of the finished steps.
        cost: download, disk, memory and time of the other steps.
        engine: `docker` or `local`; `engine_reason` is the reason for it.
        quants_setting: the setting that names the files, for messages.
        powers: of an evaluation, the smallest difference that each task can show on each file.
        nodes: the machines that the plan is shown for; 0: one, which runs the steps as the engine does.
    """

    plan: BuildPlan
    finished: frozenset[str]
    cost: Cost
    engine: str
    engine_reason: str
    artifacts: Path
    quants_setting: str = "QUANT"
    powers: tuple[PlannedPower, ...] = ()
    nodes: int = 0

    @property
    def to_run(self) -> tuple[str, ...]:
        """Labels of the steps that are left, in order."""
        return tuple(step.label for step in self.plan.steps if step.label not in self.finished)

    @property
    def expected_s(self) -> dict[str, float]:
        """Seconds that each line of the plan is expected to take; a stage in shards is one, by its title."""
        times = {label: step.seconds for label, step in self.cost.time.steps.items()}
        if not any(step.whole for step in self.plan.steps):
            return times
        from quantyard.plan.sharded_steps import steps_with_shards  # imported late: most plans are not divided

        expected = dict[str, float]()
        for line in steps_with_shards(self.plan.steps):
            known = [times[shard.label] for shard in line.shards if shard.label in times]
            at_once = len(line.shards) if self.engine in QUEUES else 1
            if known or line.step.label in times:
                expected[line.title] = sum(known) / max(1, at_once) + times.get(line.step.label, 0.0)
        return expected

    def check_disk(self) -> None:
        """Check that the disk is large enough.

        Raises:
            NotEnoughDisk: the plan needs more than is free.
        """
        self.cost.check_disk(self.artifacts, self.quants_setting)


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        files: each GGUF with its path and its record in the manifest, in the requested order.
        ran: labels of the steps that this call ran; empty if all were finished.
        folder: the model's folder in the store: the files, `manifest.json`, `eval/`.
        projector: the files of what reads pictures or sound, the one to serve first; empty without such.
        measured: the evaluation's report and its folder; None without an evaluation.
        contracts: the reports of the API test, one per tested file.
        twins: what the comparisons with Transformers found, by stage: `twin`, `parity`; empty if the plan has none.
        failures: the errors of failed steps by label, if a failed file does not stop the others.
    """

    plan: BuildPlan
    files: tuple[BuiltFile, ...]
    ran: tuple[str, ...]
    folder: Path
    projector: tuple[Path, ...] = ()
    measured: Measured | None = None
    contracts: tuple[ContractReport, ...] = ()
    twins: Mapping[str, TwinFacts] = field(default_factory=dict)
    failures: Mapping[str, StageFailed] = field(default_factory=dict)

    @property
    def manifest_path(self) -> Path:
        """The path of the model's `manifest.json`."""
        return self.folder / "manifest.json"

    @property
    def manifest(self) -> Manifest:
        """The manifest, read from disk now."""
        found = read_manifest(self.manifest_path)
        assert found is not None, "the build has written it"
        return found

    @property
    def report(self) -> EvalReport | None:
        """The report of the evaluation; None without one."""
        return self.measured.report if self.measured else None


def built_result(runner: PlanRunner, files: Sequence[BuiltFile]) -> Built:
    """The result of a runner that has run."""
    return Built(
        plan=runner.plan, files=tuple(files), ran=tuple(runner.ran), folder=runner.store.folder,
        projector=runner.projector, measured=runner.measured, contracts=tuple(runner.contracts), twins=runner.twins,
        failures=dict(runner.failures),
    )
