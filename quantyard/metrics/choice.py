"""The one rule for which file to take: the closest to the original, or a smaller one that is not measurably worse.

`choose` applies it within the limits of a user; card and page apply it to every file of a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from quantyard.formatting.numbers import format_change_interval, format_file_size, format_percent
from quantyard.metrics.intervals import interval_difference, ppl_change_interval
from quantyard.metrics.pareto import ParetoEntry, pareto_beaten_by, pareto_metric, pareto_quality, pareto_shown
from quantyard.metrics.similarity_figures import similarity_sentence
from quantyard.protocol.measurements import Estimate, EvalReport, Measurement


class Choosable(Protocol):
    """A file with a size and a quality, of which less is better."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def quality(self) -> Estimate: ...
    @property
    def entry(self) -> ParetoEntry: ...


File = TypeVar("File", bound=Choosable)


@dataclass(frozen=True)
class BestFile(Generic[File]):
    """The file to take; `equal` are larger files whose quality is better by less than the interval."""

    best: File
    equal: tuple[File, ...]
    runner_up: File | None
    n_files: int


@dataclass(frozen=True)
class ReportedFile:
    """A file of a report, with its quality as the Pareto front compares it."""

    found: Measurement
    quality: Estimate
    entry: ParetoEntry

    @property
    def label(self) -> str:
        """The quant."""
        return self.found.file.label

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.found.file.size_bytes


def best_file(files: Sequence[File]) -> BestFile[File] | None:
    """The file to take of these, and the next one; None if there is none."""
    if not files:
        return None
    best, equal = _take_of_tied_files(files)
    rest = [c for c in files if c not in (best, *equal)] or [c for c in files if c is not best]
    beaten = pareto_beaten_by(c.entry for c in files)
    front = [c for c in rest if not beaten[c.entry.label]]
    return BestFile(best, equal, _take_of_tied_files(front or rest)[0] if rest else None, len(files))


def is_quality_tie(one: Choosable, other: Choosable) -> bool:
    """Whether the difference in quality is within its 95 % interval."""
    found = interval_difference(one.quality, other.quality)
    return found.low <= 0 <= found.high


def best_of_report(report: EvalReport, labels: Iterable[str]) -> BestFile[ReportedFile] | None:
    """The file to take among those of a report that have a quality; the baseline only if there is no other."""
    found = reported_files(report, labels)
    return best_file([file for file in found if file.label != report.baseline] or found)


def reported_files(report: EvalReport, labels: Iterable[str]) -> list[ReportedFile]:
    """Those of these files that have a size and a quality in the report."""
    metric, wanted = pareto_metric(report), set(labels)
    qualities = ((m, pareto_quality(report, m, metric)) for m in report.measurements if m.file.label in wanted)
    return [
        ReportedFile(m, quality, ParetoEntry(
            m.file.label, m.file.size_bytes, quality.value, m.speed.generated_tokens_per_s if m.speed else None,
            pareto_shown(quality.value, metric)))
        for m, quality in qualities if quality and m.file.size_bytes
    ]  # fmt: skip


def _take_of_tied_files(files: Sequence[File]) -> tuple[File, tuple[File, ...]]:
    """The smallest file that ties with the best, and the larger files that are better within the interval."""
    top = min(files, key=lambda c: (c.quality.value, c.size_bytes))
    ties = [c for c in files if c is top or is_quality_tie(c, top)]
    best = min(ties, key=lambda c: (c.size_bytes, c.quality.value))
    return best, tuple(c for c in ties if c is not best and c.quality.value < best.quality.value)


# ---- sentences ---------------------------------------------------------------------------------------


def file_cost_sentence(found: Measurement) -> str:
    """What a file is and costs: "145 MB, agrees with the original on 96.5 % of tokens"."""
    size, divergence = format_file_size(found.file.size_bytes), found.divergence
    if divergence and divergence.top1_agreement:
        return f"{size}, agrees with the original on {format_percent(divergence.top1_agreement.value)} of tokens"
    if said := similarity_sentence(found.similarity):
        return f"{size}; {said}"
    change = ppl_change_interval(divergence)
    return f"{size}, perplexity {format_change_interval(change)}" if change else size


def why_file_sentence(choice: BestFile[ReportedFile], baseline: str) -> str:
    """Why this file; "" if it is the only one."""
    if choice.equal:
        others = " and ".join(file.label for file in choice.equal)
        return f"The larger {others} {'is' if len(choice.equal) == 1 else 'are'} not measurably closer to {baseline}."
    return f"It is the closest of these {choice.n_files} files to {baseline}." if choice.n_files > 1 else ""


def less_memory_sentence(choice: BestFile[ReportedFile]) -> str:
    """The next file, if it is smaller: "With less memory take Q4_K_M: 105 MB, agrees …"; "" without one."""
    other = choice.runner_up
    if other is None or other.size_bytes >= choice.best.size_bytes:
        return ""
    return f"With less memory take {other.label}: {file_cost_sentence(other.found)}."
