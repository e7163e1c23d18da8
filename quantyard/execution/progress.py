"""How a build looks while it runs: live bars on a terminal, one line per stage elsewhere. All of it on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from quantyard.formatting.numbers import (
    format_bytes,
    format_count,
    format_digits,
    format_elapsed,
    format_kld,
    format_metric_value,
    format_perplexity,
    format_tokens_per_s,
)
from quantyard.formatting.printable import printable_line
from quantyard.metrics.kinds import metric_kind
from quantyard.protocol.base import Progress as StageProgress
from quantyard.protocol.base import StageResult
from quantyard.protocol.facts import (
    DivergenceFacts,
    EvaluateFacts,
    ReportFacts,
    SpeedFacts,
    VerifyFacts,
    stage_facts_by_file,
)

_PACED = ("questions", "chunks", "repeats")  # shown with their number per second
_TASKS_SHOWN = 3  # in one line


class _Amount(ProgressColumn):
    """`135 MB of 269 MB, 42 MB/s`, `12 of 272 tensors`, or `320 of 640 questions, 41.3/s`."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        if task.total is None or not unit:
            return Text("")
        if unit != "bytes":
            pace = f", {format_digits(task.speed)}/s" if task.speed and unit in _PACED else ""
            return Text(f"{int(task.completed)} of {int(task.total)} {unit}{pace}")
        rate = f", {format_bytes(int(task.speed))}/s" if task.speed else ""
        return Text(f"{format_bytes(int(task.completed))} of {format_bytes(int(task.total))}{rate}")


class LiveReporter:
    """Bars: one for the stages, one for each stage that runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<20}", markup=False), BarColumn(bar_width=28), _Amount(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
        )
        self._stages: TaskID | None = None
        self._running: dict[str, TaskID] = {}  # by label

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, label: str, number: int, of: int) -> None:
        """Show the step's bar, pulsing until its first progress."""
        if self._stages is None:
            self._stages = self._bars.add_task("stages", total=of, unit="stages")
        self._bars.update(self._stages, completed=max(0, number - 1 - len(self._running)))
        self._running[label] = self._bars.add_task(printable_line(label), total=None, unit="")

    def progress(self, label: str, progress: StageProgress) -> None:
        """Move the step's bar."""
        if (bar := self._running.get(label)) is not None:
            self._bars.update(bar, completed=progress.done, total=progress.total, unit=progress.unit)

    def end(self, label: str, result: StageResult) -> None:
        """Replace the step's bar with a line that stays."""
        self._remove(label)
        for line in stage_end_lines(label, result):
            self.note(line)

    def fail(self, label: str, text: str) -> None:
        """Replace the step's bar with the failure."""
        self._remove(label)
        self.note(text)

    def _remove(self, label: str) -> None:
        if (bar := self._running.pop(label, None)) is not None:
            self._bars.remove_task(bar)
        if self._stages is not None:
            self._bars.advance(self._stages)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(printable_line(text), markup=False, highlight=False)


class LineReporter:
    """One line when a stage has ended, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def begin(self, label: str, number: int, of: int) -> None:
        """Print nothing: the stage's line comes when it has ended."""

    def progress(self, label: str, progress: StageProgress) -> None:
        """Print nothing."""

    def end(self, label: str, result: StageResult) -> None:
        """Print the stage's line."""
        for line in stage_end_lines(label, result):
            self.note(line)

    def fail(self, label: str, text: str) -> None:
        """Print the failure."""
        del label  # the text names it
        self.note(text)

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(printable_line(text), markup=False, highlight=False, soft_wrap=True)


def stage_end_lines(label: str, result: StageResult) -> list[str]:
    """The line of a finished stage: `[convert] 271 MB in 10.2 s`. Each mismatch that was allowed has a further line."""
    verified = VerifyFacts.read(result.facts) if result.stage == "verify" else None
    findings = _FINDINGS.get(result.stage)
    did = (", ".join(findings(result)) if findings else "") or _made(result)
    if verified is not None and verified.probes is not None and verified.chats is not None:
        did += f" ({verified.probes} probes, {verified.chats} conversations)"
    allowed = [f"  allowed: {text}" for text in verified.mismatches_allowed] if verified else []
    return [f"[{label}] {did} in {format_elapsed(result.duration_s)}", *allowed]


def _made(result: StageResult) -> str:
    size_bytes = sum(f.size_bytes for f in result.outputs)
    return format_bytes(size_bytes) if size_bytes else "passed"


# ---- what a measuring stage found, in a few words ----------------------------------------------------


def _evaluated(result: StageResult) -> Iterator[str]:
    """The number of questions, and the first metric of the first tasks, such as `arc_easy acc 47.5 %`."""
    facts = EvaluateFacts.read(result.facts)
    if facts.n_questions:
        yield f"{format_count(facts.n_questions)} questions"
    first = [(task, *next(iter(metrics.items()))) for task, metrics in facts.tasks.items() if metrics]
    scores = [
        f"{task} {name} {format_metric_value(value, metric_kind(name, value))}"
        for task, name, value in first if value is not None
    ]  # fmt: skip
    yield from scores[:_TASKS_SHOWN]
    if len(scores) > _TASKS_SHOWN:
        yield "…"


def _diverged(result: StageResult) -> Iterator[str]:
    """The divergence of one file, or of each file of a shared run."""
    if not (by_file := stage_facts_by_file(result)):
        yield from _divergence(DivergenceFacts.read(result.facts))
    for label, facts in by_file.items():
        yield f"{label} {' '.join(_divergence(DivergenceFacts.read(facts)))}"


def _divergence(facts: DivergenceFacts) -> Iterator[str]:
    if facts.perplexity is not None:
        yield f"PPL {format_perplexity(facts.perplexity)}"
    if facts.mean_kld is not None:
        yield f"mean KLD {format_kld(facts.mean_kld)}"


def _timed(result: StageResult) -> Iterator[str]:
    facts = SpeedFacts.read(result.facts)
    if facts.prompt_tokens_per_s is not None:
        yield f"prompt {format_tokens_per_s(facts.prompt_tokens_per_s)} t/s"
    if facts.generated_tokens_per_s is not None:
        yield f"generated {format_tokens_per_s(facts.generated_tokens_per_s)} t/s"


def _compared(result: StageResult) -> Iterator[str]:
    """Such as `Q4_K_M: 3 same + 1 worse`."""
    for label, file in ReportFacts.read(result.facts).files.items():
        if file.verdicts:
            yield f"{label}: " + " + ".join(f"{n} {verdict}" for verdict, n in file.verdicts.items())


_FINDINGS: Final[Mapping[str, Callable[[StageResult], Iterator[str]]]] = {
    "evaluate": _evaluated, "divergence": _diverged, "speed": _timed, "report": _compared,
}  # fmt: skip
