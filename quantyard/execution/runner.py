"""Runs the unfinished steps of a plan, in order or concurrently, and stores their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.engines import Engine
from quantyard.errors import ResultRefused, StageFailed
from quantyard.execution.completed import CompletedSteps
from quantyard.execution.manifest_writer import BuiltFile, ManifestRecords, Measured
from quantyard.execution.reporter import StepReporter
from quantyard.execution.scheduler import (
    CONCURRENT_STAGES,
    AsTheyEnd,
    Concurrency,
    EndedJob,
    InOrder,
    StepWorkers,
    Stopwatch,
    Taken,
    batch_concurrent_steps,
    concurrency_of,
)
from quantyard.plan.report_step import is_pointless_step, step_without_files
from quantyard.plan.stages import SHARED_STAGES, STAGES
from quantyard.plan.steps import BuildPlan, StageSpec, Step
from quantyard.protocol.base import ExitCode, FileEntry, StageResult
from quantyard.protocol.facts import TwinFacts
from quantyard.records import dataclass
from quantyard.store.artifact import Artifact, FinishedStage, Workspace
from quantyard.store.stages import ModelStore
from quantyard.store.take_outputs import FILES

if TYPE_CHECKING:  # a build neither measures nor tests an API
    from quantyard.execution.shared_baseline import SharedRun
    from quantyard.protocol.api_tests import ContractReport


@dataclass(frozen=True)
class _Run:
    """One running step."""

    step: Step
    spec: StageSpec
    space: Workspace
    inputs: Mapping[str, Artifact]
    resumed: bool  # continues an interrupted run


@dataclass(frozen=True)
class _Kept:
    """One successful step, in the store."""

    run: _Run
    result: StageResult
    finished: FinishedStage


@dataclass
class PlanRunner:
    """One build: a plan, an engine and a model's store. `ran`, `measured` and `contracts` are results of `run`."""

    plan: BuildPlan
    engine: Engine
    store: ModelStore
    repo_dir: Path
    limit: Concurrency | None = None  # None: the engine's own limit
    keep_going: bool = False  # after a quant has failed, continue with the others
    ran: list[str] = field(default_factory=list)
    measured: Measured | None = None
    projector: tuple[Path, ...] = ()  # the files of what reads pictures or sound; the first is the one to serve
    contracts: list[ContractReport] = field(default_factory=list)
    failures: dict[str, StageFailed] = field(default_factory=dict)  # by the step's label
    watch: Stopwatch = field(default_factory=Stopwatch)
    taken: list[Taken] = field(default_factory=list)  # the times of steps that were not resumed
    _note: Callable[[str], None] = lambda _text: None
    _alone: set[str] = field(default_factory=set)  # steps whose shared run failed, so that each runs alone
    _lost: set[str] = field(default_factory=set)  # the quants that failed
    _finished: CompletedSteps = field(init=False)
    _records: ManifestRecords = field(init=False)  # of one run
    _built: dict[str, BuiltFile] = field(default_factory=dict)  # by the quant's name

    def __post_init__(self) -> None:
        self._finished = CompletedSteps(self.engine, self.store, self.repo_dir)

    @property
    def concurrency(self) -> Concurrency:
        """How many steps run at a time."""
        return self.limit or concurrency_of(self.engine.capacity())

    @property
    def twins(self) -> dict[str, TwinFacts]:
        """What the comparisons with Transformers found, by stage: `twin`, `parity`."""
        compared = [s for s in self.plan.steps if s.row.name in ("twin", "parity") and s.label in self._finished]
        return {s.row.name: TwinFacts.read(self._finished.steps[s.label].result.facts) for s in compared}

    def find_finished(self) -> dict[str, FinishedStage]:
        """The finished steps, which need not run, by label."""
        self._finished.find(self.plan)
        return self._finished.steps

    def partial_bytes(self) -> int:
        """How many bytes of the plan's outputs are on disk already, left by unfinished resumable steps."""
        return self._finished.partial_bytes(self.plan)

    def run(self, reporter: StepReporter) -> list[BuiltFile]:
        """Run the unfinished steps. Publish each file as soon as it is verified, and the report at the end.

        Raises:
            StageFailed: a stage ended with an error; stages that finished before it stay finished.
            EngineError: the engine failed.
        """
        with self.store.locked(lambda holder: reporter.note(f"waiting: {holder} is building this model")):
            self._note = reporter.note
            self._records = ManifestRecords(self.plan, self.engine, self.store, reporter.note)
            self.store.clear_unfinished([row.name for row in STAGES.values() if row.resumable])
            self._finished.steps.clear()
            self.find_finished()
            for problem in self.store.changed:
                reporter.note(f"made again: {problem}")
            self._prepare_images(reporter)
            reporter = self._reporter_of_shards(reporter)
            self._records.finished(self._finished.steps, self._finished.specs)
            on_nodes = self.concurrency.on_nodes
            for steps in batch_concurrent_steps(self.plan.steps, on_nodes=on_nodes):
                if on_nodes or steps[0].row.name in CONCURRENT_STAGES:
                    self._run_concurrent(steps, reporter)
                else:
                    self._run_alone(steps[0], reporter)
            if self.plan.targets:
                self.projector = self._records.publish_projector(self._finished.steps)
            self.measured = self._records.publish_report(self._finished.steps)
            self.contracts = self._records.publish_contracts(self._finished.steps)
            order = [step.label for step in self.plan.steps]
            self.ran.sort(key=order.index)
            return [self._built[target.quant.name] for target in self.plan.targets if target.quant.name in self._built]

    def _run_alone(self, step: Step, reporter: StepReporter) -> None:
        """Run a step, unless it is finished or a file that it needs has failed."""
        possible = self._possible_step(step)
        if step.label in self._finished or possible is None or self._finished.is_needless(self.plan, step):
            return
        try:
            self._run_step(possible, reporter)
        except StageFailed as failed:
            self._lose(step, failed)
            reporter.fail(step.label, f"[{step.label}] failed: {failed.message}")

    def _possible_step(self, step: Step) -> Step | None:
        """The step without the files that have failed; None if there is nothing left to run."""
        possible = step_without_files(step, self._lost)
        return None if is_pointless_step(self.plan, step, self._lost) else possible

    def _lose(self, step: Step, failed: StageFailed) -> None:
        """Continue without this step's file if `keep_going` is set; else raise the failure."""
        if not self.keep_going or not step.quant:
            raise failed
        self.failures[step.label] = failed
        self._lost.add(step.quant)

    def _run_concurrent(self, steps: Sequence[Step], reporter: StepReporter) -> None:
        """Run these steps, as many at a time as the limit allows. After a failure that ends the build, no further step
        starts, but the running ones are waited for, so that their work is kept.
        """
        waiting, failed = list(steps), dict[str, BaseException]()
        said = AsTheyEnd([]) if self.concurrency.on_nodes else InOrder([step.label for step in steps])
        try:
            with StepWorkers[_Kept](self.concurrency, self.engine.stop) as workers:
                while True:
                    if not failed:
                        self._begin_ready(waiting, workers, said, reporter)
                    if workers.is_idle:
                        break
                    self._settle(workers.wait(), said, reporter, failed)
        finally:
            said.rest()
        for step in steps:
            if step.label in failed:
                raise failed[step.label]
        assert not waiting, f"{waiting[0].label}: its inputs are not finished"

    def _begin_ready(
        self, waiting: list[Step], workers: StepWorkers[_Kept], said: InOrder, reporter: StepReporter
    ) -> None:
        """Start the ready steps in the plan's order; a step that does not fit yet is not overtaken by later ones."""
        for step in tuple(waiting):
            possible = self._possible_step(step)
            if possible is None or step.label in self._finished:
                self._publish_of(step)
                said.put(step.label)
            elif not self._finished.is_ready(possible):
                continue
            elif self._finished.is_needless(self.plan, step) or self._finished.is_made(possible):
                self._publish_of(step)
                said.put(step.label)
            elif workers.fits(size_bytes := self._finished.size_bytes(possible)):
                workers.start(step.label, size_bytes, partial(self._work, self._begin(possible, reporter), reporter))
            else:
                return
            waiting.remove(step)

    def _settle(
        self, ended: EndedJob[_Kept], said: InOrder, reporter: StepReporter, failed: dict[str, BaseException]
    ) -> None:
        """Keep the result or the error of one concurrent step. Only this thread writes the manifest."""
        self.watch.end(ended.label)
        step, error = next(step for step in self.plan.steps if step.label == ended.label), ended.error
        if ended.value is not None:
            self._keep(ended.value)
            said.put(step.label, partial(reporter.end, step.label, ended.value.result))
        elif isinstance(error, StageFailed) and self.keep_going and step.quant:
            self._lose(step, error)
            said.put(step.label, partial(reporter.fail, step.label, f"[{step.label}] failed: {error.message}"))
        elif isinstance(error, Exception):
            failed[step.label] = error
        else:
            raise error or KeyboardInterrupt

    def _prepare_images(self, reporter: StepReporter) -> None:
        todo = [step for step in self.plan.steps if step.label not in self._finished]
        for image in dict.fromkeys(step.row.image for step in todo):
            self.engine.prepare(image, reporter.note)
        if todo:
            self.find_finished()  # a key is known only once its image exists

    def _reporter_of_shards(self, reporter: StepReporter) -> StepReporter:
        if not any(step.whole for step in self.plan.steps):
            return reporter
        from quantyard.execution.shard_reporter import ShardReporter  # imported late: most plans are not divided

        return ShardReporter(self.plan.steps, tuple(self._finished.steps), reporter)

    def output(self, label: str) -> Path:
        """The folder of a finished step's outputs."""
        return self._finished.steps[label].artifact.folder

    def outputs(self, label: str) -> tuple[FileEntry, ...]:
        """The outputs of a finished step."""
        return self._finished.steps[label].artifact.files

    def inputs(self, label: str, name: str) -> tuple[FileEntry, ...]:
        """The files of one input of a finished step."""
        step = next(step for step in self.plan.steps if step.label == label)
        return self._finished.inputs(step)[name].files

    def _run_step(self, step: Step, reporter: StepReporter) -> None:
        if self._finished.is_made(step):
            return
        shared = self._shared_run(step)
        if shared is not None and self._run_shared(shared, reporter):
            return
        run = self._begin(step, reporter)
        try:
            kept = self._work(run, reporter)
        finally:
            self.watch.end(step.label)
        self._keep(kept)
        reporter.end(step.label, kept.result)

    def _begin(self, step: Step, reporter: StepReporter) -> _Run:
        self._report_begin(step, step, reporter)
        spec, inputs = self._finished.specs[step.label], self._finished.inputs(step)
        resumed = step.row.resumable and self.store.partial_bytes(spec.label, spec.key) > 0
        space = self.store.begin(spec.label, spec.key, spec.request, inputs, step.row.resumable)
        return _Run(step, spec, space, inputs, resumed)

    def _report_begin(self, step: Step, first: Step, reporter: StepReporter) -> None:
        number = next(n for n, each in enumerate(self.plan.steps, 1) if each.label == first.label)
        reporter.begin(step.label, number, len(self.plan.steps))
        self.watch.begin(step.label)

    def _work(self, run: _Run, reporter: StepReporter) -> _Kept:
        """Run a step and put its outputs into the store. May be called from any thread."""
        spec = run.spec
        try:
            result = self.engine.run(spec, run.space, run.inputs, partial(reporter.progress, spec.label))
            if result.exit_code is not ExitCode.DONE:
                raise StageFailed(spec.label, result)
            result = result.model_copy(update={"shard_nodes": self._finished.shard_nodes(run.step)})
            finished = self.store.finish(spec.label, spec.key, run.space, result, spec.leaves)
            return _Kept(run, finished.result, finished)
        except BaseException as error:
            if not run.step.row.resumable or isinstance(error, ResultRefused):
                self.store.discard(run.space)
            self.store.leave(run.space)
            raise

    def _keep(self, kept: _Kept) -> None:
        step = kept.run.step
        while self.store.differing:
            self._note(f"warning: {self.store.differing.pop()}")
        self._finished.steps[step.label] = kept.finished
        self.ran.append(step.label)
        if not kept.run.resumed:
            seconds, concurrent = self.watch.taken_s[step.label], step.label in self.watch.concurrent
            if self.concurrency.on_nodes:  # alone on a machine, after it has waited for one
                seconds, concurrent = kept.result.duration_s, False
            asked = _n_questions_of(kept.result) if step.row.name == "evaluate" else 0
            key, cpu = kept.run.spec.key, kept.result.cpu
            self.taken.append(Taken(step.label, key, seconds, concurrent, n_questions=asked, cpu=cpu))
        self._records.stage(step, kept.run.spec, kept.result)
        if step.row.name in ("twin", "parity") and (told := TwinFacts.read(kept.result.facts)).status != "proved":
            self._note(f"note: {told.finding}" if told.status == "unproved" else f"warning: {told.finding}")
        self._publish_of(step)

    def _shared_run(self, step: Step) -> SharedRun | None:
        """A run that this step shares with others that are ready; None if it runs alone."""
        if not _can_share_baseline(step) or step.label in self._alone:
            return None
        from quantyard.execution.shared_baseline import shared_baseline_run  # imported late: a build measures nothing

        others = [
            other for other in self.plan.steps
            if other.row == step.row and other is not step and _can_share_baseline(other)
            and other.label not in self._finished and self._finished.spec(other)
            and not self._finished.is_needless(self.plan, other)
        ]
        if not others:
            return None
        sizes = {each.label: self._finished.inputs(each)["model"].size_bytes for each in (step, *others)}
        baseline = next((i["baseline"].size_bytes for i in map(self._finished.inputs, others) if "baseline" in i), 0)
        return shared_baseline_run(step, others, sizes | {"": baseline}, self.engine.capacity().memory_bytes)

    def _run_shared(self, shared: SharedRun, reporter: StepReporter) -> bool:
        """Run several steps as one, and store for each the result that it would have had alone.

        Returns:
            False if the run failed, so that each step must run alone.
        """
        step, inputs = shared.step, self._finished.inputs(shared.step)
        spec = self._finished.spec(step)
        assert spec is not None, "its members are ready"
        self._report_begin(step, shared.members[0], reporter)
        space = self.store.begin(spec.label, spec.key, spec.request, inputs, step.row.resumable)
        is_over = False
        try:
            result = self.engine.run(spec, space, inputs, partial(reporter.progress, step.label))
            if result.exit_code is not ExitCode.DONE:
                if not self.keep_going:
                    raise StageFailed(step.label, result)
                is_over, self._alone = True, self._alone | {member.label for member in shared.members}
                return False
            result, is_over = self.store.take(spec.label, space, result, spec.leaves), True
            for member in shared.members:
                self._keep_member(member, space, result)
        finally:
            self.watch.end(step.label)
            if is_over or not step.row.resumable:
                self.store.discard(space)
            self.store.leave(space)
        n, seconds, keys = len(shared.members), self.watch.taken_s[step.label], self._finished.specs
        self.taken += [
            Taken(m.label, keys[m.label].key, seconds / n, n_together=n, cpu=result.cpu) for m in shared.members
        ]
        reporter.end(step.label, result)
        return True

    def _keep_member(self, step: Step, shared: Workspace, result: StageResult) -> None:
        from quantyard.execution.shared_baseline import shared_run_result  # imported late, as above

        spec, (made, alone) = self._finished.specs[step.label], shared_run_result(step, result)
        space = self.store.begin(spec.label, spec.key, spec.request, self._finished.inputs(step), resumable=False)
        self.store.give(space, shared.kept_dir / FILES / made.path, alone)
        finished = self.store.finish(spec.label, spec.key, space, alone, spec.leaves)
        self._finished.steps[step.label] = finished
        self.ran.append(step.label)
        self._records.stage(step, spec, finished.result)

    def _publish_of(self, step: Step) -> None:
        """Publish the file that this step has verified, if it verifies one."""
        for target in self.plan.targets:
            if target.verified_by == step.label and step.label in self._finished:
                self._built[target.quant.name] = self._records.publish(target, self._finished.steps)


def _can_share_baseline(step: Step) -> bool:
    """Whether several steps like this one can be combined. Of steps in shards those with the same shard can."""
    return step.row.name in SHARED_STAGES and step.keyed_by is None


def _n_questions_of(result: StageResult) -> int:
    from quantyard.protocol.measuring_facts import EvaluateFacts  # imported late: a build measures nothing

    return EvaluateFacts.read(result.facts).n_questions
