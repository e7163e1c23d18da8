"""The plots of a report, drawn from its `report.json` alone.

    python -m eval.rendering.plots report.json out/

| plot | shows |
|---|---|
| `accuracy` | for every task: each file's score, its difference from the baseline, the chance level |
| `tradeoff` | size against quality, and the Pareto front |
| `divergence` | KL divergence from the baseline, from the median token to the worst |
| `speed` | tokens per second, of prompts and of generation |

Each is an SVG and a PNG, on a light and a dark background (`accuracy-light.svg`, …). A plot without data is left out.
To add a plot: write a function that takes a report and a theme and returns a figure or None, and add it to `PLOTS`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from eval.rendering.style import (
    BASELINE,
    MARKS,
    THEMES,
    Mark,
    Theme,
    new_plot_figure,
    plot_headline,
    plot_plain_log_axis,
    plot_row_axis,
    plot_style,
    save_plot,
)
from eval.rendering.tradeoff import draw_tradeoff_plot, is_accuracy_score
from quantyard.formatting.numbers import format_count, format_percent, format_tokens_per_s
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement, Score

_T = TypeVar("_T", Score, Comparison)
_ROW_IN: Final = 0.26  # inches; height of one file's row
_CHANCE_LINE: Final[Mapping[str, Any]] = {"linewidth": 1.3, "linestyle": (0, (4, 3))}
_READ_DIVERGENCE: Final = "Further left is closer. Half of the tokens lie below the median, one in 100 above 99 %."
_PERCENTILES: Final[Mapping[str, tuple[str, Mark]]] = {
    "50": ("median", Mark("o", "green")),
    "90": ("90 %", Mark("s", "blue")),
    "95": ("95 %", Mark("P", "purple")),
    "99": ("99 %", Mark("D", "orange")),
    "99.9": ("99.9 %", Mark("^", "vermillion")),
    "100": ("largest", Mark("o", "muted", hollow=True)),
}


def draw_report_plots(report: EvalReport, folder: Path) -> list[Path]:
    """Draw every plot the report has data for into `folder`; returns the files."""
    paths: list[Path] = []
    for name, plot in PLOTS.items():
        for theme in THEMES:
            with plot_style(theme):
                figure = plot(report, theme)
                paths += save_plot(figure, folder, name, theme) if figure is not None else []
    return paths


def _by_size(report: EvalReport) -> list[Measurement]:
    """The baseline, then the others from the largest to the smallest."""
    first, *others = report.measurements
    return [first, *sorted(others, key=lambda m: -m.file.size_bytes)]


# ---- accuracy ----------------------------------------------------------------------------------------


def draw_accuracy_plot(report: EvalReport, theme: Theme) -> Any:
    """One panel per task, one row per file."""
    shown = [s for s in headline_scores(report.suite, report.measurements[0].scores) if is_accuracy_score(s)]
    if not shown:
        return None
    rows = _by_size(report)
    n_columns = min(len(shown), 3 if len(shown) in (3, 5, 6, 9) else 4)
    n_lines = math.ceil(len(shown) / n_columns)
    figure = new_plot_figure(max(7.5, 1.0 + 2.7 * n_columns), 1.5 + n_lines * (0.95 + _ROW_IN * len(rows)))
    panels = figure.subplots(n_lines, n_columns, squeeze=False).flat
    drawn = [_accuracy_panel(axes, theme, score, rows) for axes, score in zip(panels, shown, strict=False)]
    for i, axes in enumerate(figure.axes):
        axes.tick_params(labelleft=i % n_columns == 0)
        axes.set_visible(i < len(shown))
    _accuracy_legend(figure, theme, set().union(*drawn))
    thick = f" Thick bars: the difference from {report.baseline}, question by question; the verdict rests on it."
    subtitle = "Per cent right. Thin lines: each score's own 95 % interval." + thick * (len(rows) > 1)
    plot_headline(figure, theme, f"{report.title}: accuracy", subtitle)
    return figure


def _accuracy_panel(axes: Any, theme: Theme, score: Score, rows: Sequence[Measurement]) -> set[str]:
    """Draw one task; returns what the legend must explain: verdicts, "chance"."""
    base = 100 * score.result.value
    axes.axvline(base, color=theme.muted, linewidth=1, zorder=1)
    found: set[str] = set()
    for y, m in enumerate(rows):
        own = _find(m.scores, score)
        change = _find(m.comparisons, score)
        if own is None:
            continue
        mark = MARKS[change.verdict] if change else BASELINE
        axes.hlines(y, 100 * own.result.low, 100 * own.result.high, color=theme.muted, linewidth=1, zorder=2)
        if change:
            found.add(change.verdict)
            ends = [base + 100 * end for end in (change.delta.low, change.delta.high)]
            colour = getattr(theme, mark.colour)
            axes.hlines(y, *ends, color=colour, linewidth=5, alpha=0.45, zorder=3)
        axes.plot(100 * own.result.value, y, zorder=4, linestyle="none", **mark.style(theme))
    plot_row_axis(axes, [m.file.label for m in rows])
    _accuracy_title(axes, theme, score)
    return found | ({"chance"} if _accuracy_limits(axes, theme, score) else set())


def _accuracy_limits(axes: Any, theme: Theme, score: Score) -> bool:
    """Set the limits; returns whether chance is shown. It is left out if it would squeeze the data."""
    axes.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    low, high = axes.get_xlim()
    chance = 100 * score.chance if score.chance is not None else math.inf
    in_sight = bool(low - 0.8 * (high - low) <= chance <= high)
    if in_sight:
        axes.axvline(chance, color=theme.purple, zorder=1, **_CHANCE_LINE)
        low = min(low, chance - 0.05 * (high - chance))
    axes.set_xlim(max(low, -1), min(high, 101))
    return in_sight


def _accuracy_title(axes: Any, theme: Theme, score: Score) -> None:
    about = f"{score.metric}, {format_count(score.n)} questions"
    about += f", chance {format_percent(score.chance)}" if score.chance is not None else ""
    axes.set_title(score.task, pad=17, fontsize=min(10.5, 10.5 * 26 / len(score.task)))
    axes.annotate(
        about, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
        size=min(8, 8 * 38 / len(about)), color=theme.muted, annotation_clip=False,
    )  # fmt: skip


def _accuracy_legend(figure: Any, theme: Theme, drawn: set[str]) -> None:
    marks = {"baseline": BASELINE} | {verdict: mark for verdict, mark in MARKS.items() if verdict in drawn}
    handles = [Line2D([], [], linestyle="none", label=name, **mark.style(theme)) for name, mark in marks.items()]
    if "chance" in drawn:
        handles.append(Line2D([], [], color=theme.purple, label="chance", **_CHANCE_LINE))
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))


def _find(among: Sequence[_T], score: Score) -> _T | None:
    return next((one for one in among if (one.task, one.metric) == (score.task, score.metric)), None)


# ---- divergence --------------------------------------------------------------------------------------


def draw_divergence_plot(report: EvalReport, theme: Theme) -> Any:
    """One row per file: its KL divergence at several percentiles of the tokens."""
    rows = [m for m in _by_size(report) if m.divergence and m.divergence.kld_percentiles]
    if not rows:
        return None
    figure = new_plot_figure(8.5, 1.75 + 0.34 * len(rows))
    axes = figure.subplots()
    axes.set_xscale("log")
    for y, m in enumerate(rows):
        _divergence_row(axes, theme, y, m)
    plot_row_axis(axes, [m.file.label for m in rows])
    axes.set_xlabel("KL divergence of a token, in nats")
    plot_plain_log_axis(axes.xaxis)
    names = [(name, mark) for key, (name, mark) in _PERCENTILES.items() if _has_percentile(rows, key)]
    handles = [Line2D([], [], linestyle="none", label=name, **mark.style(theme)) for name, mark in names]
    handles.append(Line2D([], [], linestyle="none", marker="|", color=theme.text, markersize=11, mew=2, label="mean"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), columnspacing=1.2, handletextpad=0.2)
    first = rows[0].divergence
    assert first is not None
    subtitle = f"{_READ_DIVERGENCE} Over {format_count(first.n_tokens)} tokens of {first.text}."
    plot_headline(figure, theme, f"{report.title}: divergence from {report.baseline}", subtitle)
    return figure


def _has_percentile(rows: Sequence[Measurement], key: str) -> bool:
    return any(m.divergence and m.divergence.kld_percentiles.get(key, 0) > 0 for m in rows)


def _divergence_row(axes: Any, theme: Theme, y: int, m: Measurement) -> None:
    """Draw one file; values of 0 and below (from rounding) are left out, since the scale is logarithmic."""
    assert m.divergence is not None
    found = {key: value for key, value in m.divergence.kld_percentiles.items() if value > 0}
    if found:
        axes.hlines(y, min(found.values()), max(found.values()), color=theme.faint, linewidth=3, zorder=1)
    for key, (_, mark) in _PERCENTILES.items():
        if key in found:
            axes.plot(found[key], y, linestyle="none", zorder=3, **mark.style(theme))
    if m.divergence.mean_kld and m.divergence.mean_kld.value > 0:
        axes.plot(m.divergence.mean_kld.value, y, marker="|", color=theme.text, markersize=13, mew=2, zorder=4)


# ---- speed -------------------------------------------------------------------------------------------


def draw_speed_plot(report: EvalReport, theme: Theme) -> Any:
    """Two panels of bars: reading a prompt, and generating."""
    rows = [m for m in _by_size(report) if m.speed]
    if not rows:
        return None
    first = rows[0].speed
    assert first is not None
    figure = new_plot_figure(8.5, 1.25 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    reading = [(m.speed.prompt_tokens_per_s, m.speed.prompt_spread) for m in rows if m.speed]
    writing = [(m.speed.generated_tokens_per_s, m.speed.generated_spread) for m in rows if m.speed]
    for axes, name, bars in ((left, "Prompt", reading), (right, "Generation", writing)):
        _bars(axes, theme, bars, [theme.muted if m.file.label == report.baseline else theme.blue for m in rows])
        plot_row_axis(axes, [m.file.label for m in rows])
        axes.set_title(f"{name}, tokens per second")
    threads = f"{first.threads} thread{'s' * (first.threads != 1)}"
    gpu = f", {first.n_gpu_layers} layers on the GPU" if first.n_gpu_layers > 0 else ""
    cpu = report.hardware.get("cpu")
    where = f" on {cpu}" if isinstance(cpu, str) else ""
    subtitle = f"Medians of {first.settings.repeats} runs with {threads}{gpu}{where}; whiskers span the runs."
    plot_headline(figure, theme, f"{report.title}: speed", subtitle)
    return figure


def _bars(axes: Any, theme: Theme, bars: Sequence[tuple[float, float]], colours: Sequence[str]) -> None:
    """Bars of values with whiskers of the spread (relative to the value), and the values as text beside them."""
    largest = max(value * (1 + spread / 2) for value, spread in bars)
    for y, ((value, spread), colour) in enumerate(zip(bars, colours, strict=True)):
        end = value * (1 + spread / 2)
        axes.barh(y, value, height=0.62, color=colour, linewidth=0)
        axes.hlines(y, value * (1 - spread / 2), end, color=theme.text, linewidth=1.2)
        axes.text(end + 0.015 * largest, y, format_tokens_per_s(value), va="center", size=9)
    axes.set_xlim(0, 1.16 * largest)
    axes.grid(visible=False, axis="y")


PLOTS: Final[Mapping[str, Callable[[EvalReport, Theme], Any]]] = {
    "accuracy": draw_accuracy_plot,
    "tradeoff": draw_tradeoff_plot,
    "divergence": draw_divergence_plot,
    "speed": draw_speed_plot,
}


def main() -> None:
    """Draw the plots of a report."""
    parser = argparse.ArgumentParser(description="Draw the plots of a report.")
    parser.add_argument("report", type=Path, help="report.json")
    parser.add_argument("folder", type=Path, help="where the plots go")
    args = parser.parse_args()
    draw_report_plots(EvalReport.model_validate_json(args.report.read_bytes()), args.folder)


if __name__ == "__main__":
    main()
