"""The reasons against the files of a report: files that beat them, and smaller ones that are not measurably worse, or
diverge less in their worst domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from quantyard.formatting.numbers import format_kld_interval
from quantyard.metrics.choice import ReportedFile, is_quality_tie, reported_files
from quantyard.metrics.domain_figures import domain_name, worst_domain
from quantyard.metrics.pareto import pareto_beaten_by, pareto_metric, pareto_standings
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.removals import Removal


def report_removals(report: EvalReport) -> Mapping[str, tuple[Removal, ...]]:
    """Label → the reasons against a file; none for one that is on the front and smaller than all that tie with it.
    Files without a measured quality, and the baseline, are not in it.
    """
    labels = [m.file.label for m in report.measurements if m.file.label != report.baseline]
    files = reported_files(report, labels)
    entries = [file.entry for file in files]
    beaten, said = pareto_beaten_by(entries), pareto_standings(entries, pareto_metric(report))
    return {
        file.label: (
            *_dominated_removals(file, beaten[file.label], said.get(file.label, "")),
            *_within_noise_removals(file, files), *_worse_domain_removals(file, files),
        )
        for file in files
    }  # fmt: skip


def _dominated_removals(file: ReportedFile, winners: Sequence[str], said: str) -> Iterator[Removal]:
    for winner in winners:
        yield Removal(name="DOMINATED_BY", other=winner, text=f"{file.label} is {said}."[:1000])


def _within_noise_removals(file: ReportedFile, files: Sequence[ReportedFile]) -> Iterator[Removal]:
    """The smallest file that ties with it, where that one is smaller and no closer."""
    smaller = [other for other in files if other.size_bytes < file.size_bytes]
    further = [other for other in smaller if other.quality.value >= file.quality.value]
    if ties := [other for other in further if is_quality_tie(file, other)]:
        least = min(ties, key=lambda other: other.size_bytes)
        text = f"{file.label} is larger than {least.label} and not measurably closer to the baseline: "
        text += f"{file.entry.shown} against {least.entry.shown}."
        yield Removal(name="WITHIN_NOISE_OF", other=least.label, text=text)


def _worse_domain_removals(file: ReportedFile, files: Sequence[ReportedFile]) -> Iterator[Removal]:
    """The file of equal quality, and no larger, whose worst domain diverges measurably less; of several the least."""
    own = worst_domain(file.found.domains)
    others = [o for o in files if o is not file and o.size_bytes <= file.size_bytes and is_quality_tie(file, o)]
    found = [(worst.mean_kld.value, other, worst) for other in others if (worst := worst_domain(other.found.domains))]
    less = [one for one in found if own and one[2].mean_kld.high < own.mean_kld.low]
    if own and less:
        _, other, worst = min(less, key=lambda one: one[0])
        text = f"In its worst domain, {domain_name(own.domain)}, {file.label} has mean KLD "
        text += f"{format_kld_interval(own.mean_kld)}; {other.label}, in {domain_name(worst.domain)}, "
        yield Removal(name="WORSE_DOMAIN_THAN", other=other.label, text=f"{text}{format_kld_interval(worst.mean_kld)}.")
