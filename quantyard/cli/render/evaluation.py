"""The results of an evaluation, from its report: tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from quantyard.cli.render.styled import escape_rich_markup
from quantyard.execution.manifest_writer import Measured
from quantyard.formatting import numbers
from quantyard.formatting.numbers import DASH
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.metrics.kinds import score_metric_kind
from quantyard.metrics.pareto import pareto_beaten_by, pareto_entries
from quantyard.metrics.similarity_figures import SimilarityFigure, similarity_figures
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement, Score

_COLOURS = {"worse": "red", "better": "green", "same": "", "too few questions": "yellow", "no signal": "yellow"}


def terminal_measured_files(report: EvalReport, width: int = 200) -> Table:
    """One row per file, the baseline first, then the largest: size, perplexity, divergence, speed and memory; with
    several files also the Pareto front.

    Args:
        width: of the terminal, in characters; columns that do not fit are left out.
    """
    marks = _front_marks(report)
    figures = similarity_figures(report.measurements)
    columns = [*_COLUMNS[:3], *(figure.name for figure in figures)] if figures else [*_COLUMNS]
    names = [*columns, *(["front"] if marks else [])]
    order = sorted(report.measurements, key=lambda m: (m.file.label != report.baseline, -m.file.size_bytes))
    rows = [dict(zip(names, _file_cells(report, m, marks, figures), strict=False)) for m in order]
    whole = _filled(names, rows)
    return whole if _width(whole) <= width else _filled([name for name in names if name not in _LEFT_OUT], rows)


_COLUMNS: Final = (
    "file", "size", "bits/weight", "PPL", "Δ", "mean KLD", "same top-1", "prompt", "generated", "memory",
)  # fmt: skip
# On a narrow terminal; the report has them.
_LEFT_OUT: Final = ("bits/weight", "PPL", "same top-1", "prompt", "p1 cosine", "same best 10")


def _filled(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    table = _table(*names)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _width(table: Table) -> int:
    """The width without truncation, in characters."""
    console = Console(width=1000)
    return console.measure(table).maximum


def _file_cells(
    report: EvalReport, found: Measurement, marks: Mapping[str, str], figures: Sequence[SimilarityFigure]
) -> tuple[str, ...]:
    facts = found.file
    label = f"{facts.label} (baseline)" if facts.label == report.baseline else facts.label
    size = (numbers.format_file_size(facts.size_bytes), numbers.format_bits_per_weight(facts.bits_per_weight))
    mark = marks.get(facts.label, "")
    if figures:
        return (escape_rich_markup(label), *size, *(figure.shown(found.similarity) for figure in figures), mark)
    return (escape_rich_markup(label), *size, *_divergence_cells(found), *_speed_cells(found), mark)


def _front_marks(report: EvalReport) -> dict[str, str]:
    """Marks as in the plot: filled for the front, hollow for beaten files. Empty for a single file."""
    beaten = pareto_beaten_by(pareto_entries(report))
    return {label: "○" if winners else "●" for label, winners in beaten.items()} if len(beaten) > 1 else {}


def _divergence_cells(measurement: Measurement) -> tuple[str, str, str, str]:
    found = measurement.divergence
    if found is None:
        return (DASH,) * 4
    change = ppl_change_interval(found)
    return (
        numbers.format_perplexity(found.perplexity.value), numbers.format_change(change.value) if change else DASH,
        numbers.format_kld(found.mean_kld.value) if found.mean_kld else DASH,
        numbers.format_percent(found.top1_agreement.value) if found.top1_agreement else DASH,
    )  # fmt: skip


def _speed_cells(measurement: Measurement) -> tuple[str, str, str]:
    found = measurement.speed
    if found is None:
        return (DASH,) * 3
    rates = (numbers.format_tokens_per_s(x) for x in (found.prompt_tokens_per_s, found.generated_tokens_per_s))
    prompt, generated = (f"{rate} t/s" for rate in rates)
    return prompt, generated, numbers.format_memory(found.peak_memory_bytes)


def terminal_measured_tasks(report: EvalReport, width: int = 200) -> Table | str | None:
    """One row per file, task and metric: the difference from the baseline and the verdict; None without tasks.

    If only the baseline was measured, its scores.

    Args:
        width: of the terminal, in characters; a table that does not fit is written as lines below each file.
    """
    compared = [(m.file.label, c) for m in report.measurements for c in m.comparisons]
    if compared:
        table = _table("file", "task", "metric", "n", "baseline", "value", "Δ", "95 % interval", "verdict", left=3)
        for label, comparison in compared:
            table.add_row(escape_rich_markup(label), *_comparison_cells(comparison))
        return table if _width(table) <= width else _task_lines(report)
    scores = [(m.file.label, s) for m in report.measurements for s in m.scores]
    table = _table("file", "task", "metric", "n", "value", "95 % interval", left=3)
    for label, score in scores:
        table.add_row(escape_rich_markup(label), *_score_cells(score))
    return table if scores else None


def _task_lines(report: EvalReport) -> str:
    """The same values, two lines for each task and metric."""
    lines = list[str]()
    for measurement in report.measurements:
        if measurement.comparisons:
            lines.append(f"[bold]{escape_rich_markup(measurement.file.label)}[/]")
        for found in measurement.comparisons:
            task, metric, n, baseline, value, delta, ends, verdict = _comparison_cells(found)
            lines.append(f"  {task}, {metric}: {n} questions")
            lines.append(f"    {baseline} → {value}, {delta} ({ends}): {verdict}")
    return "\n".join(lines)


def _comparison_cells(found: Comparison) -> tuple[str, ...]:
    colour = _COLOURS[found.verdict]
    needed = f": {numbers.format_forecast_count(found.questions_needed)} would do" if found.questions_needed else ""
    kind = score_metric_kind(found)
    delta = numbers.format_delta_interval(found.delta, kind)
    return (
        escape_rich_markup(found.task), escape_rich_markup(found.metric), numbers.format_count(found.n),
        numbers.format_metric_value(found.baseline, kind), numbers.format_metric_value(found.value, kind), delta.value,
        delta.ends,
        f"[{colour}]{found.verdict}{needed}[/]" if colour else f"{found.verdict}{needed}",
    )  # fmt: skip


def _score_cells(found: Score) -> tuple[str, ...]:
    written = numbers.format_score_interval(found.result, score_metric_kind(found))
    return (
        escape_rich_markup(found.task),
        escape_rich_markup(found.metric),
        numbers.format_count(found.n),
        written.value,
        written.ends,
    )


def _table(*columns: str, left: int = 1) -> Table:
    """A plain table; all columns but the first `left` and the verdict hold numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left or column == "verdict" else "right", no_wrap=True)
    return table


def terminal_report_paths(measured: Measured) -> str:
    """The paths of the report and its plots."""
    plots = sorted(path for path in measured.folder.rglob("*") if path.suffix in (".svg", ".png"))
    lines = [f"[bold]{'report':<13}[/]{escape_rich_markup(str(measured.folder / 'report.md'))}"]
    if plots:
        lines.append(f"[bold]{'plots':<13}[/]{len(plots)} in {escape_rich_markup(str(plots[0].parent))}")
    return "\n".join(lines)
