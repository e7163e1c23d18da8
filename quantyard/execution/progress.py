"""How a build looks while it runs: live bars on a terminal, one line per stage elsewhere. All of it on stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from pydantic import JsonValue
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
    count,
    digits,
    elapsed,
    human_bytes,
    kld,
    metric_value,
    perplexity,
    tokens_per_s,
)
from quantyard.formatting.printable import one_line
from quantyard.metrics.kinds import kind_of_metric
from quantyard.protocol.base import Progress as StageProgress
from quantyard.protocol.base import StageResult

_PACED = ("questions", "chunks", "repeats")  # shown with their number per second
_TASKS_SHOWN = 3  # in one line


class _Amount(ProgressColumn):
    """`135 MB of 269 MB, 42 MB/s`, `12 of 272 tensors`, or `320 of 640 questions, 41.3/s`."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        if task.total is None or not unit:
            return Text("")
        if unit != "bytes":
            pace = f", {digits(task.speed)}/s" if task.speed and unit in _PACED else ""
            return Text(f"{int(task.completed)} of {int(task.total)} {unit}{pace}")
        rate = f", {human_bytes(int(task.speed))}/s" if task.speed else ""
        return Text(f"{human_bytes(int(task.completed))} of {human_bytes(int(task.total))}{rate}")


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
        self._running[label] = self._bars.add_task(one_line(label), total=None, unit="")

    def progress(self, label: str, progress: StageProgress) -> None:
        """Move the step's bar."""
        if (bar := self._running.get(label)) is not None:
            self._bars.update(bar, completed=progress.done, total=progress.total, unit=progress.unit)

    def end(self, label: str, result: StageResult) -> None:
        """Replace the step's bar with a line that stays."""
        self._remove(label)
        for line in ending(label, result):
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
        self._console.print(one_line(text), markup=False, highlight=False)


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
        for line in ending(label, result):
            self.note(line)

    def fail(self, label: str, text: str) -> None:
        """Print the failure."""
        del label  # the text names it
        self.note(text)

    def note(self, text: str) -> None:
        """One line."""
        self._console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


def ending(label: str, result: StageResult) -> list[str]:
    """The line of a finished stage: `[convert] 271 MB in 10.2 s`. Each mismatch that was allowed has a further line."""
    did = _measured(result) or _made(result)
    allowed = result.facts.get("mismatches_allowed")
    let_pass = [f"  allowed: {text}" for text in allowed] if isinstance(allowed, list) else []
    return [f"[{label}] {did} in {elapsed(result.duration_s)}", *let_pass]


def _made(result: StageResult) -> str:
    size_bytes = sum(f.size_bytes for f in result.outputs)
    did = human_bytes(size_bytes) if size_bytes else "passed"
    if "probes" in result.facts and "chats" in result.facts:
        did += f" ({result.facts['probes']} probes, {result.facts['chats']} conversations)"
    return did


def _measured(result: StageResult) -> str:
    """The results of a measuring stage in a few words; "" for every other stage."""
    facts = result.facts
    found = {
        "evaluate": [_number(facts, "n_questions", _questions), *_scores(facts.get("tasks"))],
        "divergence": _divergences(facts),
        "speed": [
            _number(facts, "prompt_tokens_per_s", lambda x: f"prompt {tokens_per_s(x)} t/s"),
            _number(facts, "generated_tokens_per_s", lambda x: f"generated {tokens_per_s(x)} t/s"),
        ],
        "report": _verdicts(facts.get("files")),
    }
    return ", ".join(text for text in found.get(result.stage, []) if text)


def _divergences(facts: Mapping[str, JsonValue]) -> list[str]:
    """Of one file, or of each file of a shared run."""
    several = [(label, found) for label, found in facts.items() if isinstance(found, dict)]
    if several:
        return [f"{label} {' '.join(filter(None, _divergences(found)))}" for label, found in several]
    return [
        _number(facts, "perplexity", lambda x: f"PPL {perplexity(x)}"),
        _number(facts, "mean_kld", lambda x: f"mean KLD {kld(x)}"),
    ]


def _number(facts: Mapping[str, JsonValue], name: str, written: Callable[[float], str]) -> str:
    value = facts.get(name)
    return written(value) if isinstance(value, int | float) else ""


def _questions(n: float) -> str:
    return f"{count(int(n))} questions"


def _scores(tasks: JsonValue) -> list[str]:
    """The first metric of the first tasks, such as `arc_easy acc 47.5 %`."""
    rows = list(tasks.items()) if isinstance(tasks, dict) else []
    first = [(task, *next(iter(metrics.items()))) for task, metrics in rows if isinstance(metrics, dict) and metrics]
    said = [
        f"{task} {name} {metric_value(value, kind_of_metric(name, value))}"
        for task, name, value in first if isinstance(value, int | float)
    ]  # fmt: skip
    return said[:_TASKS_SHOWN] + (["…"] if len(said) > _TASKS_SHOWN else [])


def _verdicts(files: JsonValue) -> list[str]:
    """Such as `Q4_K_M: 3 same + 1 worse`."""
    rows = files.items() if isinstance(files, dict) else ()
    found = [(label, file.get("verdicts")) for label, file in rows if isinstance(file, dict)]
    counted = [(label, counts) for label, counts in found if isinstance(counts, dict)]
    return [f"{label}: " + " + ".join(f"{n} {verdict}" for verdict, n in counts.items()) for label, counts in counted]
