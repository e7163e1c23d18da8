"""The plots of a report, drawn from its `report.json` alone, at the width of a phone.

    python -m eval.rendering.plots report.json out/

| plot | shows |
|---|---|
| `tradeoff` | size against KL divergence, distance of embeddings, or change of perplexity, and the Pareto front |
| `accuracy` | for every task: each file's difference from the baseline |
| `divergence` | KL divergence of the tokens: mean, median and 99th percentile |
| `speed` | tokens per second, of prompts and of generation, and memory |

Each is an SVG and a PNG, on a light and a dark background (`accuracy-light.svg`, …). A plot without data is left out.
The layout is that of the comparison page, `quantyard/metrics/plots/`. To add a plot: write a function that takes a
report and a theme and returns a figure or None, and add it to `PLOTS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from eval.rendering.canvas import Canvas, draw_panels, draw_tradeoff
from eval.rendering.style import THEMES, Theme, plot_style, save_plot
from quantyard.formatting.numbers import format_count, format_margin
from quantyard.metrics.plots.panels import plot_divergence, plot_forest, plot_speed, plotted_files
from quantyard.metrics.plots.tradeoff import plot_tradeoffs
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.speed_results import Speed


def draw_report_plots(report: EvalReport, folder: Path) -> list[Path]:
    """Draw every plot the report has data for into `folder`; returns the files."""
    paths: list[Path] = []
    for name, plot in PLOTS.items():
        for theme in THEMES:
            with plot_style(theme):
                figure = plot(report, theme)
                paths += save_plot(figure, folder, name, theme) if figure is not None else []
    return paths


def draw_tradeoff_plot(report: EvalReport, theme: Theme) -> Any:
    """Size against quality; the first of the page's plots."""
    found = plot_tradeoffs(plotted_files(report))
    if not found:
        return None
    plot = found[0]
    drawing = next(d for d in plot.drawings if d.form == "narrow")
    told = "Square: the original. Bars: 95 % intervals. Hollow: beaten in size, quality and speed."
    if plot.has_front:
        told += " The line joins the others."
    canvas = Canvas(theme, f"{report.title}: size against quality", told, drawing.width, drawing.height + 44)
    draw_tradeoff(canvas, plot, drawing)
    return canvas.figure


def draw_accuracy_plot(report: EvalReport, theme: Theme) -> Any:
    """One panel per task, on one scale."""
    told = (
        f"Difference from {report.baseline} on the same questions, in points (perplexities: %), with 95 % intervals. "
        f"Shaded: ±{format_margin(report.suite.margin)}, which counts as the same."
    )
    title = f"{report.title}: differences, task by task"
    return draw_panels(theme, title, told, plot_forest(report, plotted_files(report)), key=True)


def draw_divergence_plot(report: EvalReport, theme: Theme) -> Any:
    """One row per file."""
    panel = plot_divergence(plotted_files(report))
    first = next((m.divergence for m in report.measurements if m.divergence), None)
    if panel is None or first is None:
        return None
    told = f"Over {format_count(first.n_tokens)} tokens of {first.text}, from {report.baseline}."
    return draw_panels(theme, f"{report.title}: divergence", told, (panel,))


def draw_speed_plot(report: EvalReport, theme: Theme) -> Any:
    """Bars for prompts, generation and memory."""
    first = next((m.speed for m in report.measurements if m.speed), None)
    if first is None:
        return None
    panels = plot_speed(plotted_files(report))
    return draw_panels(theme, f"{report.title}: speed", _plot_machine_line(report, first), panels)


def _plot_machine_line(report: EvalReport, first: Speed) -> str:
    threads = f"{first.threads} thread{'s' * (first.threads != 1)}"
    gpu = f", {first.n_gpu_layers} layers on the GPU" if first.n_gpu_layers > 0 else ""
    cpu = report.hardware.get("cpu")
    where = f" on {cpu}" if isinstance(cpu, str) else ""
    return f"Medians of {first.settings.repeats} runs with {threads}{gpu}{where}; whiskers span the runs."


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
