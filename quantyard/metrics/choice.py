"""The one rule for which file to take: the closest to the original, or a smaller one that is as good.

Two files are equal in quality if their difference is within its interval, or if both lie in the silent zone: so close
to the baseline that divergence says nothing about benchmarks. Among equal files decide, in this order: the worst
domain, behaviours that are measurably worse than the baseline's, the size, the speed.

`choose` applies it within the limits of a user; card and page apply it to every file of a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

from quantyard.formatting.numbers import format_change_interval, format_file_size, format_percent
from quantyard.metrics.domain_figures import worst_domain
from quantyard.metrics.intervals import interval_difference, ppl_change_interval
from quantyard.metrics.pareto import Metric, ParetoEntry, pareto_beaten_by, pareto_metric, pareto_quality, pareto_shown
from quantyard.metrics.similarity_figures import similarity_sentence
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.measurements import EvalReport, Measurement

# Nats of mean KLD. Over 28 quants of Qwen3.6-35B-A3B and 41 of Devstral-Small-2-24B the rank correlation of KLD and
# benchmarks is -0.72 and -0.86; over those near the baseline, the "silent zone", it is 0.00 and not significant
# (arXiv 2606.19558). Where the zone ends is ours: up to 0.01 the probability of the right token falls by 0.1 points at
# most (llama.cpp's scoreboard, docs/explanation/gate.md), a tenth of the margin within which scores count as the same,
# and not in the order of the divergence.
SILENT_ZONE_NATS: Final = 0.01
DecidedBy = Literal["quality", "behaviours", "worst domain", "size", "speed"]


class Choosable(Protocol):
    """A file with a size and a quality, of which less is better."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def quality(self) -> Estimate: ...
    @property
    def entry(self) -> ParetoEntry: ...
    @property
    def worst_domain(self) -> Interval | None: ...
    @property
    def worse_behaviours(self) -> int | None: ...


File = TypeVar("File", bound=Choosable)


@dataclass(frozen=True)
class BestFile(Generic[File]):
    """The file to take; `equal` are files closer to the baseline that are equal in quality, `ties` all that are."""

    best: File
    equal: tuple[File, ...]
    runner_up: File | None
    n_files: int
    ties: tuple[File, ...] = ()
    decided_by: DecidedBy = "quality"


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

    @property
    def worst_domain(self) -> Interval | None:
        """The mean KLD of its worst domain."""
        worst = worst_domain(self.found.domains)
        return worst.mean_kld if worst else None

    @property
    def worse_behaviours(self) -> int | None:
        """In how many behaviours it is measurably worse than the baseline; None where none was compared."""
        return worse_behaviours(self.found)


def worse_behaviours(found: Measurement) -> int | None:
    """In how many behaviours a file is measurably worse than the baseline; None where none was compared."""
    verdicts = [score.comparison.verdict for score in found.behaviours if score.comparison]
    return verdicts.count("worse") if verdicts else None


def best_file(files: Sequence[File], silent_zone: float = 0.0) -> BestFile[File] | None:
    """The file to take of these, and the next one; None if there is none.

    Args:
        silent_zone: the quality up to which all files are equal; see `silent_zone_of`.
    """
    if not files:
        return None
    best, ties, decided_by = _take_of_tied_files(files, silent_zone)
    equal = tuple(c for c in ties if c is not best and c.quality.value < best.quality.value)
    rest = [c for c in files if c not in (best, *equal)] or [c for c in files if c is not best]
    beaten = pareto_beaten_by(c.entry for c in files)
    front = [c for c in rest if not beaten[c.entry.label]]
    runner_up = _take_of_tied_files(front or rest, silent_zone)[0] if rest else None
    return BestFile(best, equal, runner_up, len(files), ties, decided_by)


def silent_zone_of(metric: Metric) -> float:
    """The quality up to which divergence says nothing about tasks; 0 for metrics of which that is not known."""
    return SILENT_ZONE_NATS if metric in ("mean KLD", "KLD of the file") else 0.0


def is_quality_tie(one: Choosable, other: Choosable) -> bool:
    """Whether the difference in quality is within its 95 % interval."""
    found = interval_difference(one.quality, other.quality)
    return found.low <= 0 <= found.high


def best_of_report(report: EvalReport, labels: Iterable[str]) -> BestFile[ReportedFile] | None:
    """The file to take among those of a report that have a quality; the baseline only if there is no other."""
    found = reported_files(report, labels)
    files = [file for file in found if file.label != report.baseline] or found
    return best_file(files, silent_zone_of(pareto_metric(report)))


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


def is_equal_quality(one: Choosable, other: Choosable, silent_zone: float) -> bool:
    """Whether two files tie, or both lie in the silent zone."""
    return max(one.quality.value, other.quality.value) <= silent_zone or is_quality_tie(one, other)


def _take_of_tied_files(files: Sequence[File], silent_zone: float) -> tuple[File, tuple[File, ...], DecidedBy]:
    """The file to take of those that are as good as the best, those, and what decided between them."""
    top = min(files, key=lambda c: (c.quality.value, c.size_bytes))
    ties = tuple(c for c in files if c is top or is_equal_quality(c, top, silent_zone))
    left = _with_fewest_worse_behaviours(_with_best_worst_domain(ties))
    best = min(left, key=lambda c: (c.size_bytes, -(c.entry.tokens_per_s or 0.0), c.quality.value))
    return best, ties, _what_decided(best, ties, left)


def _what_decided(best: Choosable, ties: Sequence[Choosable], left: Sequence[Choosable]) -> DecidedBy:
    """The first rule that separated the file from one that is closer to the baseline or smaller."""
    if len(ties) == 1:
        return "quality"
    if out := [c for c in ties if c not in left and c.size_bytes < best.size_bytes]:
        domains = _with_best_worst_domain(tuple(ties))
        return "worst domain" if any(c not in domains for c in out) else "behaviours"
    return "speed" if any(c is not best and c.size_bytes == best.size_bytes for c in left) else "size"


def _with_fewest_worse_behaviours(files: tuple[File, ...]) -> tuple[File, ...]:
    """All of them where one was not measured."""
    counts = [c.worse_behaviours for c in files]
    known = [count for count in counts if count is not None]
    if len(known) < len(files):
        return files
    return tuple(c for c, count in zip(files, counts, strict=True) if count == min(known))


def _with_best_worst_domain(files: tuple[File, ...]) -> tuple[File, ...]:
    """Those whose worst domain is not measurably worse than another's; all of them where one was not measured."""
    known = [c.worst_domain for c in files]
    ends = [found.high for found in known if found]
    if len(ends) < len(files):
        return files
    return tuple(c for c, found in zip(files, known, strict=True) if found and found.low <= min(ends))


_LARGER: Final = {True: "The larger ", False: ""}


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
        verb = "is" if len(choice.equal) == 1 else "are"
        if all(is_quality_tie(file, choice.best) for file in choice.equal):
            return f"{_LARGER[choice.decided_by == 'size']}{others} {verb} not measurably closer to {baseline}."
        return (
            f"{_LARGER[choice.decided_by == 'size']}{others} {verb} closer to {baseline}, but so near to it that "
            "divergence says nothing about benchmarks."
        )
    return f"It is the closest of these {choice.n_files} files to {baseline}." if choice.n_files > 1 else ""


def less_memory_sentence(choice: BestFile[ReportedFile]) -> str:
    """The next file, if it is smaller: "With less memory take Q4_K_M: 105 MB, agrees …"; "" without one."""
    other = choice.runner_up
    if other is None or other.size_bytes >= choice.best.size_bytes:
        return ""
    return f"With less memory take {other.label}: {file_cost_sentence(other.found)}."
