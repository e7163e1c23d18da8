"""The progress of a workflow: the steps of each run, and events between runs.

The command line shows them on a terminal; the Python API passes each as a line to the caller's function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from quantyard.errors import StageFailed
from quantyard.execution import reporter as execution
from quantyard.execution.stage_line_reporter import StageLineReporter
from quantyard.formatting.numbers import format_bytes, format_kld
from quantyard.formatting.printable import printable_line, printable_url
from quantyard.workflows.results import Planned

if TYPE_CHECKING:  # a build with nothing to do tells none of these
    from quantyard.plan.imatrix import ImatrixDecision
    from quantyard.protocol.gate import GateReport


class Event(Protocol):
    """An event between runs."""

    @property
    def text(self) -> str:
        """The event for people, one line or a few."""


@runtime_checkable
class WorkflowReporter(Protocol):
    """Receives the progress of a workflow."""

    def steps(self) -> AbstractContextManager[execution.StepReporter]:
        """A reporter for the steps of one run, open while they run."""

    def tell(self, event: Event) -> None:
        """Receives an event between runs."""


# ---- events ------------------------------------------------------------------------------------------
# Every command defines all of them, and a named tuple is defined in a fifth of the time of a frozen dataclass.


class PlanMade(NamedTuple):
    """The plan that is about to run."""

    planned: Planned

    @property
    def text(self) -> str:
        """The stages that are left, and the disk that they need."""
        plan, left, cost = self.planned.plan, self.planned.to_run, self.planned.cost
        needs = f"; {format_bytes(cost.disk_needed_bytes)} of disk" if cost.disk_needed_bytes else ""
        return f"{plan.source.title}: {len(left)} of {len(plan.steps)} stages to run with {self.planned.engine}{needs}"


class TrialBegins(NamedTuple):
    """IMATRIX=auto makes each file with the matrix and without."""

    @property
    def text(self) -> str:
        """The purpose of the trial."""
        return "IMATRIX=auto: each file is made with the matrix and without, and the better one is kept."


class ImatrixDecided(NamedTuple):
    """The decision of the trial for each file."""

    decisions: Sequence[ImatrixDecision]

    @property
    def text(self) -> str:
        """One line per file."""
        return "\n".join(f"{decision.quant}: {decision.reason}" for decision in self.decisions)


class NotOffered(NamedTuple):
    """The files cannot be linked into the folder that is served."""

    artifacts: Path
    file: Path

    @property
    def text(self) -> str:
        """The command that serves them."""
        return f"Not linked into {self.artifacts}/served. Serve it:  MODEL_FILE={self.file} docker compose up"


class OthersServed(NamedTuple):
    """Other files are served than those that were built; a build does not change that.

    Attributes:
        quants: those that were built.
        unserved: the built files that are not served.
        outdated: those of them of which an earlier build is served, under the same name.
    """

    model: str
    quants: Sequence[str]
    unserved: Sequence[Path]
    outdated: Sequence[Path] = ()

    @property
    def text(self) -> str:
        """What is not served, and the command that serves it."""
        names = ", ".join(path.name for path in self.unserved)
        earlier = ", ".join(path.name for path in self.outdated)
        said = f" An earlier build is served as {earlier}." if earlier else ""
        command = f"make serve MODEL={self.model} QUANT={','.join(self.quants)}"
        return f"Not served yet: {names}.{said} To serve what was built:  {command}"


class LeftOutOfReport(NamedTuple):
    """Files of the last report on a suite that the new one is not about."""

    suite: str
    left_out: Sequence[str]
    measured: Sequence[str]
    model: str

    @property
    def text(self) -> str:
        """Why, and the command that measures them beside the others."""
        names, every = ", ".join(self.left_out), ",".join([*self.measured, *self.left_out])
        why = "measured with other settings or versions, or as another file, so they cannot be compared"
        command = f"make eval MODEL={self.model} QUANT={every} SUITE={self.suite.partition('+')[0]}"
        return f"Left out of the report on {self.suite}: {names}, {why}. With the settings of this run:  {command}"


class MoreInRelease(NamedTuple):
    """The folder `release` holds more than the files that were asked for.

    Attributes:
        described: the quants that the card and the page are about.
        others: files of models that they are not about.
        asked: the quants that were asked for.
    """

    folder: Path
    described: Sequence[str]
    others: Sequence[str]
    model: str
    asked: Sequence[str]

    @property
    def text(self) -> str:
        """What is there, and how to take it out."""
        names = ", ".join(self.others)
        beside = f"; beside it, and not described there: {names}" if names else ""
        command = f"make report MODEL={self.model} QUANT={','.join(self.asked)} ONLY=1"
        return (
            f"{self.folder} is about {', '.join(self.described)}{beside}. "
            f"To take all but {', '.join(self.asked)} out of it:  {command}"
        )


class NotServed(NamedTuple):
    """What the last build made is not served; its own words."""

    text: str


class Waiting(NamedTuple):
    """Another process holds the model's folder."""

    holder: str

    @property
    def text(self) -> str:
        """The holder of the lock."""
        return f"waiting: {self.holder} is building this model"


class GateJudged(NamedTuple):
    """The gate's report, before anything is sent."""

    gate: GateReport

    @property
    def text(self) -> str:
        """The outcome, and every budget."""
        found = [f"  {result.quant}: {result.finding}" for result in self.gate.results]
        return "\n".join([f"gate: {self.gate.outcome} (budgets: {self.gate.budgets})", *found])


class QuantsFailed(NamedTuple):
    """Every quant of a matrix failed."""

    failures: Mapping[str, StageFailed]

    @property
    def text(self) -> str:
        """One line per failed step."""
        return "\n".join(f"{label}: {failed.message}" for label, failed in self.failures.items())


class SearchRuns(NamedTuple):
    """A run of a search begins."""

    what: str
    n_left: int
    n_steps: int

    @property
    def text(self) -> str:
        """The number of steps that are left."""
        return f"{self.what}: {self.n_left} of {self.n_steps} steps to run"


class MixMeasured(NamedTuple):
    """A search for TARGET_KLD has measured a mix; divergences in nats."""

    number: int
    expected_kld: float
    measured_kld: float

    @property
    def text(self) -> str:
        """Both divergences."""
        return (
            f"Round {self.number}: expected {format_kld(self.expected_kld)}, measured {format_kld(self.measured_kld)}."
        )


class TimingBegins(NamedTuple):
    """`rates` begins to time this machine."""

    @property
    def text(self) -> str:
        """The purpose of the run."""
        return "Two models of random weights run through every stage, to time it. Ignore their quality."


class DemoBegins(NamedTuple):
    """The demo begins, with this engine."""

    engine: str
    engine_reason: str

    @property
    def text(self) -> str:
        """The model and the engine."""
        return f"The demo builds SmolLM2-135M-Instruct with {self.engine} ({self.engine_reason})."


# ---- reporters ---------------------------------------------------------------------------------------


class SilentReporter:
    """Reports nothing."""

    @contextmanager
    def steps(self) -> Iterator[execution.StepReporter]:
        """A reporter that ignores the steps."""
        yield LinesReporter(lambda _text: None)

    def tell(self, event: Event) -> None:
        """Ignores the event."""


class LinesReporter(StageLineReporter):
    """Passes every event and every finished step to a function, a line at a time.

    Args:
        on_line: called with one line of text, by one thread at a time.
    """

    def __init__(self, on_line: Callable[[str], object]) -> None:
        self._on_line = on_line

    @contextmanager
    def steps(self) -> Iterator[execution.StepReporter]:
        """The reporter itself."""
        yield self

    def tell(self, event: Event) -> None:
        """Passes on each line of the event."""
        for line in event.text.splitlines():
            self.note(line)

    def note(self, text: str) -> None:
        """Passes on one line."""
        self._on_line(printable_line(printable_url(text)))
