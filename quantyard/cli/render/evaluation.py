"""The results of an evaluation, from its report: tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.cli.render.tables import FittedTable
from quantyard.execution.manifest_writer import Measured
from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.behaviour_figures import BEHAVIOUR_FIGURES, behaviour_rows
from quantyard.metrics.divergence_parts import divergence_parts_sentence, perplexity_parts_sentence
from quantyard.metrics.domain_figures import compared_by_domain, domain_rows
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.metrics.kinds import score_metric_kind
from quantyard.metrics.layout_figures import layout_sentence
from quantyard.metrics.pareto import pareto_beaten_by, pareto_entries
from quantyard.metrics.similarity_figures import SimilarityFigure, similarity_figures
from quantyard.metrics.verdicts import open_verdict_note
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement, Score

_COLOURS = {"worse": "red", "better": "green", "same": "", "too few questions": "yellow", "no signal": "yellow"}


def terminal_measured_files(report: EvalReport) -> FittedTable:
    """One row per file, the baseline first, then the largest: size, perplexity, divergence, speed and memory; with
    several files also the Pareto front.
    """
    marks = _render_front_marks(report)
    figures = similarity_figures(report.measurements)
    columns = [*_COLUMNS[:3], *(figure.name for figure in figures)] if figures else [*_COLUMNS]
    table = FittedTable([*columns, *(["front"] if marks else [])])
    for found in sorted(report.measurements, key=lambda m: (m.file.label != report.baseline, -m.file.size_bytes)):
        table.add_row(*_render_file_cells(report, found, marks, figures)[: len(table.columns)])
    return table


_COLUMNS: Final = (
    "file", "size", "bits", "PPL", "Δ", "mean KLD", "same top token", "prompt", "generated", "memory",
)  # fmt: skip


def _render_file_cells(
    report: EvalReport, found: Measurement, marks: Mapping[str, str], figures: Sequence[SimilarityFigure]
) -> tuple[str, ...]:
    facts = found.file
    label = f"{facts.label} (baseline)" if facts.label == report.baseline else facts.label
    size = (numbers.format_file_size(facts.size_bytes), numbers.format_bits_per_weight(facts.bits_per_weight))
    mark = marks.get(facts.label, "")
    if figures:
        return (escape_rich_markup(label), *size, *(figure.shown(found.similarity) for figure in figures), mark)
    return (escape_rich_markup(label), *size, *_render_divergence_cells(found), *_render_speed_cells(found), mark)


def _render_front_marks(report: EvalReport) -> dict[str, str]:
    """Marks as in the plot: filled for the front, hollow for beaten files. Empty for a single file."""
    beaten = pareto_beaten_by(pareto_entries(report))
    return {label: "○" if winners else "●" for label, winners in beaten.items()} if len(beaten) > 1 else {}


def _render_divergence_cells(measurement: Measurement) -> tuple[str, str, str, str]:
    found = measurement.divergence
    if found is None:
        return (DASH,) * 4
    change = ppl_change_interval(found)
    return (
        numbers.format_perplexity(found.perplexity.value), numbers.format_change(change.value) if change else DASH,
        numbers.format_kld(found.mean_kld.value) if found.mean_kld else DASH,
        numbers.format_percent(found.top1_agreement.value) if found.top1_agreement else DASH,
    )  # fmt: skip


def _render_speed_cells(measurement: Measurement) -> tuple[str, str, str]:
    found = measurement.speed
    if found is None:
        return (DASH,) * 3
    prompt, generated = map(numbers.format_speed, (found.prompt_tokens_per_s, found.generated_tokens_per_s))
    return prompt, generated, numbers.format_memory(found.peak_memory_bytes)


def terminal_measured_tasks(report: EvalReport) -> FittedTable | None:
    """One row per file, task and metric: the difference from the baseline and the verdict; None without tasks.

    If only the baseline was measured, its scores.
    """
    compared = [(m.file.label, c) for m in report.measurements for c in m.comparisons]
    scores = [(m.file.label, s) for m in report.measurements for s in m.scores]
    values = ("baseline", "value", "Δ", "95 % interval", "verdict") if compared else ("value", "95 % interval")
    table = FittedTable(("file", "task", "metric", "n", *values), left=3, heads=3, words=("verdict",))
    for label, comparison in compared:
        table.add_row(escape_rich_markup(label), *_render_comparison_cells(comparison))
    for label, score in () if compared else scores:
        table.add_row(escape_rich_markup(label), *_render_score_cells(score))
    return table if table.rows else None


def terminal_measured_domains(report: EvalReport) -> FittedTable | None:
    """One row per domain with the mean KLD of each file, the worst at the end; None where none was compared."""
    rows = domain_rows(report.measurements)
    if not rows:
        return None
    labels = [m.file.label for m in compared_by_domain(report.measurements)]
    table = FittedTable(("mean KLD on", "tokens", *map(escape_rich_markup, labels)))
    for name, *cells in rows:
        table.add_row(escape_rich_markup(name), *map(escape_rich_markup, cells), style="bold" if not cells[0] else "")
    return table


def _render_comparison_cells(found: Comparison) -> tuple[str, ...]:
    colour = _COLOURS[found.verdict]
    needed = f": {note}" if (note := open_verdict_note(found)) else ""
    kind = score_metric_kind(found)
    delta = numbers.format_delta_interval(found.delta, kind)
    return (
        escape_rich_markup(found.task), escape_rich_markup(found.metric), numbers.format_count(found.n),
        numbers.format_metric_value(found.baseline, kind), numbers.format_metric_value(found.value, kind), delta.value,
        delta.ends,
        f"[{colour}]{found.verdict}{needed}[/]" if colour else f"{found.verdict}{needed}",
    )  # fmt: skip


def _render_score_cells(found: Score) -> tuple[str, ...]:
    written = numbers.format_score_interval(found.result, score_metric_kind(found))
    return (
        escape_rich_markup(found.task),
        escape_rich_markup(found.metric),
        numbers.format_count(found.n),
        written.value,
        written.ends,
    )


def terminal_measured_behaviours(report: EvalReport) -> FittedTable | None:
    """One row per kind of scenario and file; None where none were asked."""
    columns = [figure.name for figure in BEHAVIOUR_FIGURES]
    table = FittedTable(("behaviour", "file", *columns), left=2, heads=2, words=("verdict",))
    for row in behaviour_rows(report.measurements):
        colour = _COLOURS[row.verdict] if row.verdict else ""
        cells = [
            f"[{colour}]{cell}[/]" if colour and figure.is_text else str(cell)
            for figure, cell in zip(BEHAVIOUR_FIGURES, row.cells, strict=True)
        ]
        table.add_row(row.title, escape_rich_markup(row.label), *cells)
    return table if table.rows else None


def terminal_report_paths(measured: Measured) -> str:
    """The paths of the report and its plots; of each file the parts of its divergence, and the noise of the packing."""
    plots = sorted(path for path in measured.folder.rglob("*") if path.suffix in (".svg", ".png"))
    lines = [f"[bold]{'report':<13}[/]{escape_rich_markup(str(measured.folder / 'report.md'))}"]
    if plots:
        lines.append(f"[bold]{'plots':<13}[/]{len(plots)} in {escape_rich_markup(str(plots[0].parent))}")
    for m in measured.report.measurements:
        parts = m.divergence.parts if m.divergence else None
        split, moves = divergence_parts_sentence(parts) if parts else "", layout_sentence(m.layout_noise)
        change = perplexity_parts_sentence(parts) if parts else ""
        for name, said in (("divergence", split), ("perplexity", change), ("layout noise", moves)):
            lines += [f"[bold]{name:<13}[/]{escape_rich_markup(f'{m.file.label}: {said}')}"] if said else []
    return "\n".join(lines)
